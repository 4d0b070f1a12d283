//! What is read of the kernel's own `task_struct`: who a process is, in the numbers that the tracer knows it by.
//!
//! A tracer in a PID namespace of its own (a sidecar) sees other numbers than the kernel's; `struct pid` has those of every
//! namespace that a process is in (include/linux/pid.h). It must not know user space.

use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_probe_read_kernel};
use tracer_ebpf::cell::Cell;
use tracer_ebpf::tables::Settings;

/// PID namespaces in each other, 32 at the most for the kernel (`MAX_PID_NS_LEVEL`); deeper ones than this do not see us.
const LEVELS: u32 = 8;
/// `sizeof(struct upid)`: the number, and a pointer to its namespace 8 bytes behind.
const UPID_BYTES: u64 = 16;

/// A task of the kernel.
#[derive(Clone, Copy)]
pub struct Task(u64);

#[inline(always)]
pub fn word_at(address: u64) -> u64 {
    let mut word = 0u64;
    // SAFETY: the helper checks the source address; the destination is eight bytes long.
    unsafe { bpf_probe_read_kernel((&raw mut word).cast(), 8, address as *const _) };
    word
}

#[inline(always)]
fn half_at(address: u64) -> u32 {
    let mut half = 0u32;
    // SAFETY: as above, four bytes.
    unsafe { bpf_probe_read_kernel((&raw mut half).cast(), 4, address as *const _) };
    half
}

impl Task {
    /// The one that runs.
    #[inline(always)]
    pub fn current() -> Self {
        // SAFETY: the helper returns the address of the current task and cannot fail.
        Self(unsafe { bpf_get_current_task() })
    }

    /// One that a tracepoint names.
    #[inline(always)]
    pub fn at(address: u64) -> Self {
        Self(address)
    }

    #[inline(always)]
    fn word(self, offset: &Cell) -> u64 {
        word_at(self.0.wrapping_add(offset.load()))
    }

    #[inline(always)]
    fn half(self, offset: &Cell) -> u32 {
        half_at(self.0.wrapping_add(offset.load()))
    }

    /// Its memory: `mm_struct`; 0: it has none any more.
    #[inline(always)]
    pub fn memory(self, settings: &Settings) -> u64 {
        self.word(&settings.kernel.task_mm)
    }

    /// Whether it is the first thread of its process.
    #[inline(always)]
    pub fn is_first_thread(self, settings: &Settings) -> bool {
        self.half(&settings.kernel.task_pid) == self.half(&settings.kernel.task_tgid)
    }

    /// Whether it runs in the same memory as another.
    #[inline(always)]
    pub fn shares_memory(self, other: Self, settings: &Settings) -> bool {
        self.word(&settings.kernel.task_mm) == other.word(&settings.kernel.task_mm)
    }

    /// Whether the last thread of its process is ending (`do_exit` in kernel/exit.c has counted it off by then).
    #[inline(always)]
    pub fn is_last_thread(self, settings: &Settings) -> bool {
        let signal = self.word(&settings.kernel.task_signal);
        half_at(signal.wrapping_add(settings.kernel.signal_live.load())) == 0
    }

    /// Its process's number, as the tracer knows it; 0: not in the tracer's namespace.
    #[inline(always)]
    pub fn process(self, settings: &Settings) -> u32 {
        if settings.own_namespace.load() == 0 {
            return self.half(&settings.kernel.task_tgid);
        }
        Self(self.word(&settings.kernel.task_group_leader)).number(settings)
    }

    /// Its own number, as the tracer knows it; 0: not in the tracer's namespace.
    #[inline(always)]
    pub fn number(self, settings: &Settings) -> u32 {
        let own = settings.own_namespace.load();
        if own == 0 {
            return self.half(&settings.kernel.task_pid);
        }
        let pid = self.word(&settings.kernel.task_thread_pid);
        let deepest = half_at(pid.wrapping_add(settings.kernel.pid_level.load()));
        let mut number = 0;
        for level in 0..LEVELS {
            if level > deepest {
                break;
            }
            let place = settings.kernel.pid_numbers.load() + u64::from(level) * UPID_BYTES;
            let place = pid.wrapping_add(place);
            let namespace = word_at(place.wrapping_add(8));
            let is_own =
                half_at(namespace.wrapping_add(settings.kernel.namespace_number.load())) == own as u32;
            if is_own {
                number = half_at(place);
            }
        }
        number
    }
}
