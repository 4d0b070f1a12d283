//! Whole processes: fork, exec, exit, and the hold that lets a COMMAND be armed before its interpreter's first allocation.
//!
//! A process is *followed* from when userspace names it, or from its fork by one that is followed, until it ends. Only of such
//! processes is userspace told anything (of all execs of the host, if it asks for them).

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::BPF_RB_FORCE_WAKEUP;
use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_send_signal};
use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid};
use aya_ebpf::macros::{raw_tracepoint, uprobe};
use aya_ebpf::programs::{ProbeContext, RawTracePointContext};
use tracer_ebpf::abi::{ProcessRecord, record};
use tracer_ebpf::cell::Cell;
use tracer_ebpf::tables::{Globals, Settings};

use super::maps::{
    NOWHERE, deactivate, events, follow, followed, forget_thread, globals, programs, settings, totals,
    unfollow,
};
use super::registers::stack_pointer;
use super::task::Task;

const SIGSTOP: u32 = 19;

/// Stops the COMMAND that we started ourselves, and nothing else.
#[inline(always)]
fn hold_own_command(settings: &Settings, process: u32, count: impl Fn(&Globals) -> &Cell) {
    let Some(globals) = globals() else { return };
    if process != 0 && settings.held_process.load() == u64::from(process) {
        count(globals).add(1);
        // SAFETY: sends a signal to the current process; no memory is involved.
        unsafe { bpf_send_signal(SIGSTOP) };
    }
}

#[inline(always)]
fn tell(record: u32, pid: u32, parent: u32, mark: u32, slot: u32) {
    // SAFETY: the helper takes nothing and cannot fail.
    let nanoseconds = unsafe { bpf_ktime_get_ns() };
    let (pops, pushes) = match totals(slot) {
        Some(totals) if slot != 0 => (totals.pops.load(), totals.pushes.load()),
        _ => (0, 0),
    };
    let told = ProcessRecord { record, pid, parent, mark, nanoseconds, pops, pushes };
    // Whatever lies unread before it: openings of pools wake nobody, and the kernel wakes for what is first only (kernel/bpf/ringbuf.c, `bpf_ringbuf_commit`).
    if events().output::<ProcessRecord>(told, u64::from(BPF_RB_FORCE_WAKEUP)).is_err()
        && let Some(globals) = globals()
    {
        globals.untold.add(1);
    }
}

/// `sched_process_fork(parent, child)`: in the parent, before the child runs. Its child is followed from now on, so that none
/// of *its* children is missed either.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn process_fork(context: RawTracePointContext) -> i32 {
    let Some(settings) = settings() else { return 0 };
    let (parent, child) = (Task::current(), Task::at(context.arg::<u64>(1)));
    if !child.is_first_thread(settings) {
        return 0;
    }
    let number = parent.process(settings);
    let Some(slot) = followed(number) else { return 0 };
    let pid = child.process(settings);
    if pid == 0 || follow(pid).is_err() {
        if let Some(globals) = globals() {
            globals.untold.add(1);
        }
        return 0;
    }
    tell(record::FORK, pid, number, child.shares_memory(parent, settings).into(), slot);
    0
}

/// 1 if the current command's name, which an exec has set by now (`begin_new_exec` in fs/exec.c), is `python`, `python3` or `python3.` and more: if it ends
/// before anybody can look at it, it was one. `python3-config` and the like are scripts.
#[inline(always)]
fn is_named_python() -> u32 {
    let Ok(name) = bpf_get_current_comm() else { return 0 };
    let start = u64::from_ne_bytes([name[0], name[1], name[2], name[3], name[4], name[5], 0, 0]);
    let is_version = name[6].wrapping_sub(b'0') < 10 && (name[7] == 0 || name[7] == b'.');
    (start == u64::from_ne_bytes(*b"python\0\0") && (name[6] == 0 || is_version)) as u32
}

/// `sched_process_exec`: a process has a new image. What is armed in it was meant for the old one.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_exec(context: RawTracePointContext) -> i32 {
    // What the thread had in flight is of memory that is gone, and of accounts that others may get. The second is its number
    // before it became the first thread of its process (`de_thread` in fs/exec.c).
    forget_thread(bpf_get_current_pid_tgid() as u32);
    forget_thread(context.arg::<u64>(1) as u32);
    let Some(settings) = settings() else { return 0 };
    let process = Task::current().process(settings);
    hold_own_command(settings, process, |globals| &globals.exec_holds);
    match followed(process) {
        Some(slot) => deactivate(slot),
        None if settings.all_execs.load() == 0 || process == 0 => return 0,
        None => {}
    }
    // Whatever it was recorded as, it has no slot now.
    if follow(process).is_err()
        && let Some(globals) = globals()
    {
        globals.untold.add(1);
    }
    tell(record::EXEC, process, 0, is_named_python(), 0);
    0
}

/// `sched_process_exit`: a thread ends; its cells are free for the next one with its number. With the last thread its process
/// ends, and its number may be another's a moment later.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn process_exit(context: RawTracePointContext) -> i32 {
    let _ = context.as_ptr();
    forget_thread(bpf_get_current_pid_tgid() as u32);
    let Some(settings) = settings() else { return 0 };
    let task = Task::current();
    if !task.is_last_thread(settings) {
        return 0;
    }
    let process = task.process(settings);
    let Some(slot) = followed(process) else { return 0 };
    unfollow(process);
    deactivate(slot);
    tell(record::EXIT, process, 0, 0, 0);
    0
}

/// On the entry point of a COMMAND's program, and on its way out.
#[uprobe]
#[inline(always)]
pub fn hold(context: ProbeContext) -> u32 {
    if let Some(settings) = settings() {
        hold_own_command(settings, Task::current().process(settings), |globals| &globals.point_holds);
    }
    if stack_pointer(&context) == 0 {
        // SAFETY: nothing needs to be dropped, and the slot is empty; see `mod.rs` for why the call is here.
        unsafe { programs().tail_call(&context, NOWHERE) };
    }
    0
}
