//! Branches, by their bits: the kernel's own rules for what it simulates.
//!
//! Why: a probe on an instruction that is simulated costs a fraction of one that is stepped out of line, and which ones are is said
//! by bit patterns (arch/arm64/kernel/probes/decode-insn.c, arch/arm64/include/asm/insn.h). It must not know values.

/// An instruction that the kernel simulates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Branch {
    /// `b`, to the target.
    Jump(u64),
    /// `b.cond`, `cbz`, `cbnz`, `tbz`, `tbnz`: to the target or the next instruction.
    Conditional(u64),
    /// `bl`.
    Call(u64),
    /// `blr`.
    IndirectCall,
    /// `br`, `ret`.
    Indirect,
    /// `adr`, `adrp`: no branch, but simulated too.
    Address,
}

impl Branch {
    /// What `word` at `address` is; none if the kernel does not simulate it.
    pub fn of(word: u32, address: u64) -> Option<Self> {
        let to = |offset: i64| address.wrapping_add_signed(offset);
        let is = |mask: u32, value: u32| word & mask == value;
        if is(0xff00_0010, 0x5400_0000) || is(0x7e00_0000, 0x3400_0000) {
            return Some(Self::Conditional(to(signed(word >> 5, 19))));
        }
        if is(0x7e00_0000, 0x3600_0000) {
            return Some(Self::Conditional(to(signed(word >> 5, 14))));
        }
        match word & 0xfc00_0000 {
            0x1400_0000 => return Some(Self::Jump(to(signed(word, 26)))),
            0x9400_0000 => return Some(Self::Call(to(signed(word, 26)))),
            _ => {}
        }
        match word & 0xffff_fc1f {
            0xd61f_0000 | 0xd65f_0000 => return Some(Self::Indirect),
            0xd63f_0000 => return Some(Self::IndirectCall),
            _ => {}
        }
        is(0x1f00_0000, 0x1000_0000).then_some(Self::Address)
    }
}

/// The low `bits` of `field` as a signed number of instructions, in bytes.
fn signed(field: u32, bits: u32) -> i64 {
    let unused = 64 - bits;
    ((i64::from(field) << unused) >> unused) * 4
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words and meanings by `aarch64-linux-gnu-as`.
    #[test]
    fn reads_what_the_assembler_writes() {
        let at = |word| Branch::of(word, 0x1000);
        assert_eq!(at(0xb400_0040), Some(Branch::Conditional(0x1008)), "cbz x0, .+8");
        assert_eq!(at(0x35ff_ffe1), Some(Branch::Conditional(0xffc)), "cbnz w1, .-4");
        assert_eq!(at(0x3648_0062), Some(Branch::Conditional(0x100c)), "tbz w2, #9, .+12");
        assert_eq!(at(0xb7ff_ffc3), Some(Branch::Conditional(0xff8)), "tbnz x3, #63, .-8");
        assert_eq!(at(0x5400_0041), Some(Branch::Conditional(0x1008)), "b.ne .+8");
        assert_eq!(at(0x17ff_ffff), Some(Branch::Jump(0xffc)), "b .-4");
        assert_eq!(at(0x9400_0002), Some(Branch::Call(0x1008)), "bl .+8");
        assert_eq!(at(0xd61f_0200), Some(Branch::Indirect), "br x16");
        assert_eq!(at(0xd65f_03c0), Some(Branch::Indirect), "ret");
        assert_eq!(at(0xd63f_0020), Some(Branch::IndirectCall), "blr x1");
        assert_eq!(at(0x9000_0003), Some(Branch::Address), "adrp x3, 0x1000");
        assert_eq!(at(0x1000_0043), Some(Branch::Address), "adr x3, .+8");
    }

    #[test]
    fn leaves_the_rest_to_stepping() {
        for (word, text) in [
            (0xd503_245f, "bti c"),
            (0xd503_233f, "paciasp"),
            (0xd65f_0bff, "retaa"),
            (0x5400_0050, "bc.eq .+8"),
            (0xa9be_7bfd, "stp x29, x30, [sp, #-32]!"),
            (0xf940_0401, "ldr x1, [x0, #8]"),
        ] {
            assert_eq!(Branch::of(word, 0x1000), None, "{text}");
        }
    }
}
