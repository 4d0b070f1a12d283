//! Decodes the records of the ring buffer. Pure; the bytes come from the kernel half, but their content from the target.

use tracer_ebpf::abi::{
    BlockRecord, CodeRecord, LINE_TABLE_BYTES, LineTableRecord, PART_FRAMES, PROCESSES, PoolRecord,
    ProcessRecord, RawFrame, RawText, StackRecord, record,
};
use zerocopy::FromBytes as _;

use crate::resolve::{CodeDefinition, RawString};

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A part of the stack of an account that was not known.
    Stack {
        /// Process slot.
        process: u32,
        /// The account.
        account: u32,
        /// How the walk ended, or that it goes on: see [`tracer_ebpf::abi::end`].
        end: u32,
        /// Frames in the parts before.
        offset: u32,
        /// The thread's number in our PID namespace; 0 where it has none there.
        thread: u32,
        /// Innermost first.
        frames: Vec<RawFrame>,
    },
    /// A code object that was not known. Its line table has come before, in pieces.
    Code {
        /// Process slot.
        process: u32,
        /// Address.
        code: u64,
        /// Tells code objects at one address apart.
        fingerprint: u32,
        /// Bytes that its line table has.
        line_table_bytes: u32,
        /// Everything but the line table.
        definition: CodeDefinition,
    },
    /// A piece of a line table.
    LineTable {
        /// Process slot.
        process: u32,
        /// Address of the code object.
        code: u64,
        /// As in [`Event::Code`].
        fingerprint: u32,
        /// Where the piece belongs.
        offset: u64,
        /// The piece.
        bytes: Vec<u8>,
    },
    /// A pool was opened.
    Pool(PoolOpening),
    /// A block was handed out in a window.
    Block(BlockSeen),
    /// Something has happened to a whole process.
    Process(ProcessEvent),
    /// Something that this version does not know, or a record that is too short.
    Unknown {
        /// The first word.
        record: u32,
    },
}

/// A pool and the stack that opened it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolOpening {
    /// Process slot.
    pub process: u32,
    /// The stack's account.
    pub account: u32,
    /// Address of the pool's header.
    pub pool: u64,
}

/// A block that was handed out in a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSeen {
    /// Process slot.
    pub process: u16,
    /// The account of the stack that got it.
    pub account: u32,
    /// Where it is.
    pub address: u64,
    /// What the allocator spends on it.
    pub bytes: u64,
    /// Whether it is malloc's; else pymalloc's.
    pub is_malloc: bool,
    /// It stands for `1 << level` such blocks of its window.
    pub level: u8,
    /// The last bits of the window's number.
    pub window: u16,
}

/// What happens to whole processes. Times are nanoseconds of the monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessEvent {
    /// A followed process has a child.
    Fork {
        /// The child.
        pid: u32,
        /// Its parent.
        parent: u32,
        /// It runs in its parent's memory until it execs.
        shares_memory: bool,
        /// When.
        nanoseconds: u64,
        /// Pops and pushes of the parent until then.
        parent_events: (u64, u64),
    },
    /// A process has replaced its program.
    Exec {
        /// Which.
        pid: u32,
        /// When.
        nanoseconds: u64,
        /// Whether the program's name begins with `python`.
        is_named_python: bool,
    },
    /// A followed process has ended.
    Exit {
        /// Which.
        pid: u32,
    },
}

/// Decodes one record.
#[must_use]
pub fn decode(bytes: &[u8]) -> Event {
    let number = bytes.first_chunk::<4>().map_or(0, |first| u32::from_ne_bytes(*first));
    let decoded = match number {
        record::STACK => stack(bytes),
        record::CODE => code(bytes),
        record::LINE_TABLE => line_table(bytes),
        record::EXEC | record::EXIT | record::FORK => process(bytes),
        record::POOL => pool(bytes),
        record::BLOCK => block(bytes),
        _ => None,
    };
    decoded.unwrap_or(Event::Unknown { record: number })
}

fn pool(bytes: &[u8]) -> Option<Event> {
    let (PoolRecord { process, account, pool, .. }, _) = PoolRecord::read_from_prefix(bytes).ok()?;
    Some(Event::Pool(PoolOpening { process, account, pool }))
}

fn block(bytes: &[u8]) -> Option<Event> {
    let (told, _) = BlockRecord::read_from_prefix(bytes).ok()?;
    let BlockRecord { process, account, mark, bytes, block, .. } = told;
    Some(Event::Block(BlockSeen {
        process: (process & (PROCESSES - 1)) as u16,
        account,
        address: block,
        bytes,
        is_malloc: mark & 1 != 0,
        level: (mark >> 8 & 15) as u8,
        window: (mark >> 16) as u16,
    }))
}

fn process(bytes: &[u8]) -> Option<Event> {
    let (told, _) = ProcessRecord::read_from_prefix(bytes).ok()?;
    let ProcessRecord { record, pid, parent, mark, nanoseconds, pops, pushes } = told;
    Some(Event::Process(match record {
        record::FORK => ProcessEvent::Fork {
            pid,
            parent,
            shares_memory: mark != 0,
            nanoseconds,
            parent_events: (pops, pushes),
        },
        record::EXEC => ProcessEvent::Exec { pid, nanoseconds, is_named_python: mark != 0 },
        _ => ProcessEvent::Exit { pid },
    }))
}

fn stack(bytes: &[u8]) -> Option<Event> {
    let (stack, _) = StackRecord::ref_from_prefix(bytes).ok()?;
    let length = (stack.length as usize).min(PART_FRAMES);
    Some(Event::Stack {
        process: stack.process,
        account: stack.account,
        end: stack.end,
        offset: stack.offset,
        thread: stack.thread,
        frames: stack.frames[..length].to_vec(),
    })
}

fn code(bytes: &[u8]) -> Option<Event> {
    let (code, _) = CodeRecord::ref_from_prefix(bytes).ok()?;
    let qualified_name = text(&code.qualified_name);
    let definition = CodeDefinition {
        name: text(&code.name),
        qualified_name: (qualified_name.length != 0).then_some(qualified_name),
        file: text(&code.file),
        first_line: code.first_line.cast_signed(),
        first_traceable: code.first_traceable,
        line_table: Vec::new(),
        line_table_complete: false,
    };
    Some(Event::Code {
        process: code.process,
        code: code.code,
        fingerprint: code.fingerprint,
        line_table_bytes: code.line_table_bytes,
        definition,
    })
}

fn text<const BYTES: usize>(raw: &RawText<BYTES>) -> RawString {
    let used = (raw.used as usize).min(BYTES);
    RawString { state: raw.state, length: raw.length, bytes: raw.text[..used].to_vec() }
}

fn line_table(bytes: &[u8]) -> Option<Event> {
    let (piece, _) = LineTableRecord::ref_from_prefix(bytes).ok()?;
    let used = (piece.used as usize).min(LINE_TABLE_BYTES);
    Some(Event::LineTable {
        process: piece.process,
        code: piece.code,
        fingerprint: piece.fingerprint,
        offset: piece.offset,
        bytes: piece.bytes[..used].to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn exec() {
        let words = [record::EXEC, 4711, 0, 0, 7, 0, 0, 0, 0, 0];
        let bytes: Vec<u8> = words.iter().flat_map(|word: &u32| word.to_ne_bytes()).collect();
        assert_eq!(
            decode(&bytes),
            Event::Process(ProcessEvent::Exec { pid: 4711, nanoseconds: 7, is_named_python: false })
        );
    }

    #[test]
    fn a_short_record_is_unknown() {
        assert_eq!(decode(&record::STACK.to_ne_bytes()), Event::Unknown { record: record::STACK });
        assert_eq!(decode(&[]), Event::Unknown { record: 0 });
    }

    proptest! {
        #[test]
        fn any_bytes_decode(number in 0u32..10, mut bytes in proptest::collection::vec(any::<u8>(), 4..3000)) {
            bytes[..4].copy_from_slice(&number.to_ne_bytes());
            let _ = decode(&bytes);
        }
    }
}
