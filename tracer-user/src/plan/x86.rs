//! The finder for x86-64: from an ELF file to the places where blocks leave and enter pymalloc's pools.
//!
//! Why: optimised interpreters carry up to 254 inlined copies of the allocator's fast path, without symbols; only the data flow tells.
//! One linear sweep picks candidates, the walk proves them. It must not know processes or probes, nor which interpreter this is.

mod code;
mod cold;
mod filter;
mod machine;
mod patterns;
mod sweep;
mod targets;
mod value;
mod walk;

pub use code::{Code, is_emulated_branch, jump_target, register_number};
pub use cold::ColdSite;
pub use targets::BranchTargets;
pub use walk::{Site, Verdict};

use self::sweep::{Sweep, sweep};
use self::walk::Walker;
use super::elf::{Elf, MappedBytes};

/// Places that open pools: 1 in gcc's builds, 4 in clang's. Each costs a scan of the file.
const MOST_COLD_SITES: usize = 64;

/// Everything the finder saw, before it is turned into a plan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// Pops and pushes, proven or not, sorted by branch, no two alike.
    pub sites: Vec<Site>,
    /// Places that open pools.
    pub cold_sites: Vec<ColdSite>,
    /// Whether the file has more candidates than are looked at: sites may be missing.
    pub is_cut: bool,
}

/// Searches all code of `elf`.
pub fn find(elf: &Elf<'_>) -> Findings {
    let mut findings = Findings::default();
    for range in elf.code() {
        search(range, &mut findings);
    }
    findings.sites.sort_by_key(|site| (site.branch, site.store));
    findings.sites.dedup();
    findings.cold_sites.sort_by_key(|site| site.store);
    findings.is_cut |= findings.cold_sites.len() > MOST_COLD_SITES;
    findings.cold_sites.truncate(MOST_COLD_SITES);
    findings
}

fn search(range: MappedBytes<'_>, findings: &mut Findings) {
    let (Some(swept), Some(mut code)) = (sweep(range), Code::new(range)) else { return };
    let Sweep { candidates, ones, targets, is_cut, .. } = swept;
    findings.is_cut |= is_cut;
    findings
        .cold_sites
        .extend(ones.into_iter().filter_map(|store| cold::examine(&mut code, &targets, store)));
    let mut walker = Walker::new(&mut code, &targets);
    for candidate in candidates {
        let mut sites = walker.walk(candidate);
        // What came before the load may hide an operation (a value known from a store is no load): look without it too.
        if !sites.iter().any(|site| matches!(site.verdict, Verdict::Proven(_)))
            && candidate.start != candidate.load
        {
            let alone = walker.walk(walk::Candidate { start: candidate.load, ..candidate });
            if alone.iter().any(|site| matches!(site.verdict, Verdict::Proven(_))) || sites.is_empty() {
                sites = alone;
            }
        }
        findings.sites.extend(sites);
    }
}

/// How many direct calls and jumps in `range` lead to `address`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct References {
    /// `call`s.
    pub calls: usize,
    /// Jumps, conditional or not, from elsewhere.
    pub jumps: usize,
}

/// Counts references by a scan for 32-bit displacements, which needs no decoding: a chance match is one in four billion a byte.
pub fn references(elf: &Elf<'_>, address: u64) -> References {
    let mut found = References::default();
    for range in elf.code() {
        for (position, window) in range.bytes.windows(6).enumerate() {
            let &[first, second, ref rest @ ..] = window else { continue };
            let near = i32::from_le_bytes([second, rest[0], rest[1], rest[2]]);
            let here = range.address.wrapping_add(position as u64);
            match first {
                0xe8 if here.wrapping_add(5).wrapping_add_signed(near.into()) == address => found.calls += 1,
                0xe9 if here.wrapping_add(5).wrapping_add_signed(near.into()) == address => found.jumps += 1,
                0x0f if second & 0xf0 == 0x80 => {
                    let far = i32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]);
                    found.jumps +=
                        usize::from(here.wrapping_add(6).wrapping_add_signed(far.into()) == address);
                }
                _ => {}
            }
        }
    }
    found
}
