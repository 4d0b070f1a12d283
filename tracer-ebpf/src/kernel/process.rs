//! Whole processes: exec, exit, and the hold that lets a COMMAND be armed before its interpreter's first allocation.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_send_signal;
use aya_ebpf::macros::{raw_tracepoint, uprobe};
use aya_ebpf::programs::{ProbeContext, RawTracePointContext};
use tracer_ebpf::abi::{ProcessRecord, record};
use tracer_ebpf::cell::Cell;
use tracer_ebpf::tables::Globals;

use super::maps::{NOWHERE, events, forget_thread, globals, programs, settings};
use super::registers::stack_pointer;

const SIGSTOP: u32 = 19;

/// Stops the COMMAND that we started ourselves, and nothing else.
#[inline(always)]
fn hold_own_command(count: impl Fn(&Globals) -> &Cell) {
    let (Some(settings), Some(globals)) = (settings(), globals()) else { return };
    let pid = bpf_get_current_pid_tgid() >> 32;
    if pid != 0 && settings.held_process.load() == pid {
        count(globals).add(1);
        // SAFETY: sends a signal to the current process; no memory is involved.
        unsafe { bpf_send_signal(SIGSTOP) };
    }
}

/// `sched_process_exec`: a process has a new image.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_exec(_context: RawTracePointContext) -> i32 {
    hold_own_command(|globals| &globals.exec_holds);
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let _ = events().output::<ProcessRecord>(ProcessRecord { record: record::EXEC, pid }, 0);
    0
}

/// `sched_process_exit`: a thread ends; its cells are free for the next one with its number.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn process_exit(_context: RawTracePointContext) -> i32 {
    forget_thread(bpf_get_current_pid_tgid() as u32);
    0
}

/// On the entry point of a COMMAND's program, and on its way out.
#[uprobe]
#[inline(always)]
pub fn hold(context: ProbeContext) -> u32 {
    hold_own_command(|globals| &globals.point_holds);
    if stack_pointer(&context) == 0 {
        // SAFETY: nothing needs to be dropped, and the slot is empty; see `mod.rs` for why the call is here.
        unsafe { programs().tail_call(&context, NOWHERE) };
    }
    0
}
