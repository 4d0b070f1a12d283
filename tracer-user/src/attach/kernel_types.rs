//! Offsets of kernel structures, from the kernel's own type information.
//!
//! A small reader of BTF (Documentation/bpf/btf.rst) that looks for one member and keeps nothing: a full parse takes tens of
//! megabytes, which would be most of what the tracer may use. Pure: bytes in, offset out.

/// Type information of one kernel.
#[derive(Debug, Clone, Copy)]
pub struct KernelTypes<'a> {
    types: &'a [u8],
    strings: &'a [u8],
}

const KIND_INT: u32 = 1;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_ENUM64: u32 = 19;
const MAGIC: u16 = 0xeb9f;

fn half(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// One struct or union met while reading.
struct Record<'a> {
    name: &'a [u8],
    members: &'a [u8],
    has_bit_fields: bool,
}

impl<'a> KernelTypes<'a> {
    /// Checks the header.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        if bytes.get(..2)? != MAGIC.to_le_bytes() {
            return None;
        }
        let header = half(bytes, 4)? as usize;
        let section = |offset: usize, length: usize| {
            let start = header.checked_add(half(bytes, offset)? as usize)?;
            bytes.get(start..start.checked_add(half(bytes, length)? as usize)?)
        };
        Some(Self { types: section(8, 12)?, strings: section(16, 20)? })
    }

    /// Offsets in bytes of members, each `(structure, member)`, in one pass over all types.
    #[must_use]
    pub fn member_offsets<const MEMBERS: usize>(
        &self,
        members: [(&str, &str); MEMBERS],
    ) -> [Option<u64>; MEMBERS] {
        let mut offsets = [None; MEMBERS];
        let mut at = 0;
        while let Some((record, next)) = self.record(at) {
            at = next;
            let Some(record) = record else { continue };
            for ((structure, member), offset) in members.iter().zip(&mut offsets) {
                if offset.is_none() && record.name == structure.as_bytes() {
                    *offset = self.find_member(&record, member);
                }
            }
        }
        offsets
    }

    fn find_member(&self, record: &Record<'_>, member: &str) -> Option<u64> {
        record.members.chunks_exact(12).find_map(|entry| {
            let bits = half(entry, 8)?;
            let bits = if record.has_bit_fields { bits & 0x00ff_ffff } else { bits };
            (self.text(half(entry, 0)?)? == member.as_bytes()).then_some(u64::from(bits / 8))
        })
    }

    /// The type at `at` if it is a structure, and where the next one begins; `None` at the end.
    fn record(&self, at: usize) -> Option<(Option<Record<'a>>, usize)> {
        let information = half(self.types, at.checked_add(4)?)?;
        let count = (information & 0xffff) as usize;
        let kind = information >> 24 & 0x1f;
        let tail = match kind {
            KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
            KIND_ARRAY => 12,
            KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => count * 12,
            KIND_ENUM | KIND_FUNC_PROTO => count * 8,
            _ => 0,
        };
        let next = at.checked_add(12 + tail)?;
        if kind != KIND_STRUCT {
            return Some((None, next));
        }
        let members = self.types.get(at + 12..next)?;
        let name = self.text(half(self.types, at)?)?;
        Some((Some(Record { name, members, has_bit_fields: information >> 31 != 0 }), next))
    }

    fn text(&self, offset: u32) -> Option<&'a [u8]> {
        let rest = self.strings.get(offset as usize..)?;
        rest.iter().position(|byte| *byte == 0).map(|end| &rest[..end])
    }
}

/// What is read of the kernel's own structures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offsets {
    /// Where `task_struct` keeps the user-space thread pointer.
    pub thread_pointer: u64,
    /// In the order of `tracer_ebpf::tables::KernelOffsets`.
    pub kernel: [u64; 10],
}

#[cfg(target_arch = "x86_64")]
const THREAD_POINTER: (&str, &str) = ("thread_struct", "fsbase");
/// `uw` is a structure whose first member is `tp_value` (arch/arm64/include/asm/processor.h, struct thread_struct).
#[cfg(target_arch = "aarch64")]
const THREAD_POINTER: (&str, &str) = ("thread_struct", "uw");

const MEMBERS: [(&str, &str); 13] = [
    ("task_struct", "thread"),
    THREAD_POINTER,
    ("task_struct", "pid"),
    ("task_struct", "tgid"),
    ("task_struct", "group_leader"),
    ("task_struct", "thread_pid"),
    ("task_struct", "signal"),
    ("task_struct", "mm"),
    ("signal_struct", "live"),
    ("pid", "level"),
    ("pid", "numbers"),
    ("pid_namespace", "ns"),
    ("ns_common", "inum"),
];

/// Reads them; the error is the member that is missing.
pub fn offsets(types: &KernelTypes<'_>) -> Result<Offsets, &'static str> {
    let found = types.member_offsets(MEMBERS);
    let mut all = [0; MEMBERS.len()];
    for ((offset, place), (_, member)) in found.iter().zip(&mut all).zip(MEMBERS) {
        *place = offset.ok_or(member)?;
    }
    let [thread, inner, kernel @ .., namespace, number] = all;
    let mut offsets = Offsets { thread_pointer: thread + inner, kernel: [0; 10] };
    offsets.kernel[..9].copy_from_slice(&kernel);
    offsets.kernel[9] = namespace + number;
    Ok(offsets)
}

/// Where `mm_struct` keeps the rough count of anonymous pages; `None` where the kernel counts in another way (before Linux 6.2).
pub fn anonymous_pages(types: &KernelTypes<'_>) -> Option<u64> {
    /// `MM_ANONPAGES`, include/linux/mm_types_task.h.
    const ANONYMOUS: u64 = 1;
    // All of `mm_struct` but its end is in a structure without a name.
    let members = [("", "rss_stat"), ("percpu_counter", "count"), ("percpu_counter", "counters")];
    let [counters, count, last] = types.member_offsets(members);
    Some(counters? + ANONYMOUS * (last? + 8) + count?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn finds_members_of_the_running_kernel() {
        let Ok(bytes) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            eprintln!("no kernel type information here");
            return;
        };
        let types = KernelTypes::new(&bytes).unwrap();
        // The first member of every list head, on every kernel.
        let members = [("list_head", "next"), ("list_head", "prev"), ("list_head", "no such member")];
        assert_eq!(types.member_offsets(members), [Some(0), Some(8), None]);
        assert!(offsets(&types).unwrap().thread_pointer > 1000);
    }

    proptest! {
        #[test]
        fn survives_any_bytes(mut bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            if bytes.len() >= 24 {
                bytes[..2].copy_from_slice(&MAGIC.to_le_bytes());
                bytes[4..24].copy_from_slice(&[24, 0, 0, 0, 0, 0, 0, 0, 200, 0, 0, 0, 200, 0, 0, 0, 100, 0, 0, 0]);
            }
            if let Some(types) = KernelTypes::new(&bytes) {
                let _ = types.member_offsets([("a", "b"), ("", "")]);
            }
        }
    }
}
