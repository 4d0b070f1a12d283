//! What the kernel half is told once or now and then, and the counters that concern no single process: two tables of one element.

use std::io;

use tracer_ebpf::abi::PROCESSES;

use super::kernel::table_error;
use super::kernel_types::Offsets;
use super::{AttachError, Kernel};

/// `tracer_ebpf::tables::Settings` as words.
type Settings = [u64; size_of::<tracer_ebpf::tables::Settings>() / 8];
/// Index of `held_process` in it.
const HELD_PROCESS: usize = 8;
/// Index of `all_execs` in it.
const ALL_EXECS: usize = 21;
/// Index of `anonymous_pages` in it.
const ANONYMOUS_PAGES: usize = 22;
/// Index of `huge_jump` in it.
const HUGE_JUMP: usize = 23;
/// Index of `window` in it.
const WINDOW: usize = 24;
/// Index of `keeps` in it.
const KEEPS: usize = 25;
/// `tracer_ebpf::tables::Globals` as words.
pub type Globals = [u64; size_of::<tracer_ebpf::tables::Globals>() / 8];

impl Kernel {
    pub(super) fn write_settings(&mut self, offsets: Offsets) -> Result<(), AttachError> {
        let sizes = self.sizes();
        let entries = u64::from(sizes.live_buckets) * tracer_ebpf::bucket::ENTRIES as u64;
        // Thinning begins at 50 % and has 15 steps to 80 %: tests/account/capacity.rs of tracer-ebpf measures what fits.
        let mut seed = [0; 8];
        std::fs::File::open("/dev/urandom")
            .and_then(|mut file| io::Read::read_exact(&mut file, &mut seed))
            .map_err(table_error("SETTINGS"))?;
        let mut words: Settings = [0; _];
        words[..10].copy_from_slice(&[
            entries / 2,
            entries / 50,
            u64::from(sizes.live_buckets),
            u64::from(sizes.index_buckets),
            u64::from(sizes.code_buckets),
            u64::from(sizes.accounts),
            u64::from_ne_bytes(seed),
            offsets.thread_pointer,
            0,
            (1 << 32) / u64::from(sizes.live_buckets.max(1)),
        ]);
        words[10..20].copy_from_slice(&offsets.kernel);
        words[20] = self.own_namespace;
        self.array::<Settings>("SETTINGS")?.set(0, words, 0).map_err(table_error("SETTINGS"))?;
        let globals: Globals = [0, u64::from(PROCESSES), 0, 0, 0, 0];
        self.array::<Globals>("GLOBALS")?.set(0, globals, 0).map_err(table_error("GLOBALS"))
    }

    /// How often the held process has been held: after an exec, at a point.
    pub fn holds(&self) -> Result<(u64, u64), AttachError> {
        let [_, _, after_exec, at_point, ..]: Globals = self.words("GLOBALS", 0)?;
        Ok((after_exec, at_point))
    }

    /// Forks, execs and ends of followed processes that we were not told of, because the ring buffer was full.
    pub fn untold(&self) -> Result<u64, AttachError> {
        let [_, _, _, _, untold, _]: Globals = self.words("GLOBALS", 0)?;
        Ok(untold)
    }

    /// Which process may be held; 0: none.
    pub fn set_held(&mut self, pid: u32) -> Result<(), AttachError> {
        self.set(HELD_PROCESS, u64::from(pid))
    }

    /// How full the table of live blocks is: 1.0 is all of it.
    pub fn live_fill(&self) -> Result<f64, AttachError> {
        let [used, ..]: Globals = self.words("GLOBALS", 0)?;
        let places = u64::from(self.sizes().live_buckets) * tracer_ebpf::bucket::ENTRIES as u64;
        Ok(used as f64 / places as f64)
    }

    /// Accounts that processes have now, the processes' own ones aside, as a share of all. `given_back`: how many userspace has given
    /// back so far, modulo 2^32.
    pub fn account_fill(&self, given_back: u32) -> Result<f64, AttachError> {
        let [_, used, _, _, _, free]: Globals = self.words("GLOBALS", 0)?;
        let free = given_back.wrapping_sub(tracer_ebpf::free::taken(free));
        let all = u64::from(self.sizes().accounts.saturating_sub(PROCESSES));
        let used = used.saturating_sub(u64::from(PROCESSES)).min(all);
        Ok(used.saturating_sub(u64::from(free)) as f64 / all.max(1) as f64)
    }

    /// Asks to be told of every exec of the host, not only those of followed processes.
    pub fn tell_all_execs(&mut self) -> Result<(), AttachError> {
        self.set(ALL_EXECS, 1)
    }

    /// Where `mm_struct` keeps the rough count of anonymous pages, and by how much it jumps when a huge page comes.
    pub(super) fn set_anonymous_pages(&mut self, offset: u64) -> Result<(), AttachError> {
        self.set(ANONYMOUS_PAGES, offset)?;
        self.set(HUGE_JUMP, huge_jump(processors()))
    }

    /// Of everything that is armed only allocations count, and those only in windows.
    pub fn set_window(&mut self, window: tracer_ebpf::tables::Window) -> Result<(), AttachError> {
        self.set(WINDOW, window.0)
    }

    /// What counts outside of windows too: a sum of `tracer_ebpf::tables::keeps`.
    pub fn keep_outside_of_windows(&mut self, keeps: u64) -> Result<(), AttachError> {
        self.set(KEEPS, keeps)
    }

    fn set(&mut self, setting: usize, value: u64) -> Result<(), AttachError> {
        let mut settings = self.array::<Settings>("SETTINGS")?;
        let mut words = settings.get(&0, 0).map_err(table_error("SETTINGS"))?;
        words[setting] = value;
        settings.set(0, words, 0).map_err(table_error("SETTINGS"))
    }
}

/// Processors that are online.
fn processors() -> u64 {
    // SAFETY: takes a number and reads no memory of ours.
    let number = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    u64::try_from(number).unwrap_or(1).max(1)
}

/// The least jump of the rough count of a process's anonymous pages when a huge page has come. Each processor adds to it once it has a batch of 32 pages, or
/// of two for each processor if that is more (lib/percpu_counter.c, `compute_batch_value`); a huge page's 512 it adds at once, less what it still had. Where
/// a batch alone is half as large nothing can be told, and no jump is enough.
fn huge_jump(processors: u64) -> u64 {
    let batch = (2 * processors).max(32);
    if batch < 256 { 512 - batch } else { i64::MAX.cast_unsigned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_never_taken_for_a_huge_page() {
        for processors in 1..1000 {
            assert!(huge_jump(processors) > 2 * processors.max(16), "{processors} processors");
        }
        assert_eq!((huge_jump(2), huge_jump(127)), (480, 258));
        assert_eq!(huge_jump(128), i64::MAX.cast_unsigned());
    }
}
