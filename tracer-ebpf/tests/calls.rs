//! The malloc call state machine against a thread's real call stack: nesting, tail jumps, returns that never come.
#![expect(clippy::unwrap_used, reason = "clippy knows test functions, not the helpers of tests")]

use proptest::prelude::*;
use tracer_ebpf::abi::function;
use tracer_ebpf::calls::{
    Entered, OldBlock, Request, enter, is_continued, is_nested_free, leave, look_into, old_block,
};
use tracer_ebpf::tables::{Thread, Window};

/// Where the stacks of the tests begin.
const STACK: u64 = 0x7ffd_0000_0000;

/// What a thread does next.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// Calls a function of the family, `words` below the caller; 0: jumps there, if it is in one of the family.
    Call { number: u8, arguments: [u64; 3], words: u64 },
    /// Calls `free`.
    Free { words: u64 },
    /// Returns from the innermost call, and from those that jumped to it.
    Return,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let number =
        (0..=function::PVALLOC).prop_filter("free has no return", |number| *number != function::FREE);
    let arguments = [0_u64..1 << 20, 0..1 << 20, 0..1 << 20];
    let call = (number, arguments, 0_u64..6);
    let step = prop_oneof![
        3 => call.prop_map(|(number, arguments, words)| Step::Call { number, arguments, words }),
        1 => (0_u64..6).prop_map(|words| Step::Free { words }),
        3 => Just(Step::Return),
    ];
    proptest::collection::vec(step, 0..80)
}

/// A call that has not returned.
#[derive(Debug, Clone, Copy)]
struct Frame {
    stack_pointer: u64,
    request: Request,
}

/// A thread's true calls of the family, beside what the state machine says.
struct Model {
    thread: Thread,
    frames: Vec<Frame>,
    /// The stack pointer outside all calls of the family.
    outside: u64,
}

impl Model {
    fn new() -> Self {
        Self { thread: Thread::default(), frames: Vec::new(), outside: STACK }
    }

    fn stack_pointer(&self) -> u64 {
        self.frames.last().map_or(self.outside, |frame| frame.stack_pointer)
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Call { number, arguments: [first, second, third], words } => {
                self.call(Request::from_arguments(number, first, second, third), words, false);
            }
            Step::Free { words } => {
                let is_nested = is_nested_free(&self.thread, self.stack_pointer() - words * 8);
                assert_eq!(is_nested, !self.frames.is_empty());
            }
            Step::Return => self.leave(),
        }
    }

    fn call(&mut self, request: Request, words: u64, abandoned: bool) {
        let is_outermost = self.frames.is_empty();
        // A jump from outside is a plain call, and no function jumps to itself.
        let jumps_to_itself = self.frames.first().is_some_and(|outermost| {
            outermost.stack_pointer == self.stack_pointer() && outermost.request.function == request.function
        });
        let words = if jumps_to_itself { words.max(1) } else { words };
        let stack_pointer = self.stack_pointer() - words * 8;
        let entered = enter(&self.thread, &request, stack_pointer);
        let expected = if is_outermost { Entered::Outermost { abandoned } } else { Entered::Nested };
        assert_eq!(entered, expected, "{:?}", self.frames);
        self.frames.push(Frame { stack_pointer, request });
    }

    /// All calls that share the innermost one's stack pointer return at one instruction, the innermost first.
    fn leave(&mut self) {
        let Some(innermost) = self.frames.last().copied() else { return };
        while self.frames.last().is_some_and(|frame| frame.stack_pointer == innermost.stack_pointer) {
            let frame = self.frames.pop().unwrap();
            let expected = self.frames.is_empty().then_some(frame.request);
            assert_eq!(leave(&self.thread), expected);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn only_the_outermost_call_counts(history in steps()) {
        let mut model = Model::new();
        history.into_iter().for_each(|step| model.apply(step));
    }

    /// Returns of calls that began before recording did.
    #[test]
    fn returns_without_an_entry_change_nothing(history in steps(), returns in 0_usize..5) {
        let mut model = Model::new();
        for step in history {
            if model.frames.is_empty() {
                (0..returns).for_each(|_| assert_eq!(leave(&model.thread), None));
            }
            model.apply(step);
        }
    }

    /// A `longjmp` out of all calls: the next one from there, or from further out, is seen to be outermost, and so are all
    /// that follow.
    #[test]
    fn a_lost_return_is_noticed(before in steps(), after in steps(), up in 1_u64..100) {
        let mut model = Model::new();
        before.into_iter().for_each(|step| model.apply(step));
        let abandoned = !model.frames.is_empty();
        model.frames.clear();
        model.outside = STACK + up * 8;
        model.call(Request::from_arguments(function::MALLOC, 1, 0, 0), 0, abandoned);
        model.leave();
        after.into_iter().for_each(|step| model.apply(step));
    }

    /// The same function called again from the same place, as in a loop: the stack pointer is equal.
    #[test]
    fn a_lost_return_in_a_loop_is_noticed(number in 0..=function::PVALLOC, rounds in 1_usize..5) {
        let thread = Thread::default();
        let request = Request::from_arguments(number, 8, 8, 8);
        enter(&thread, &request, STACK);
        for _ in 0..rounds {
            prop_assert_eq!(enter(&thread, &request, STACK), Entered::Outermost { abandoned: true });
        }
        prop_assert_eq!(leave(&thread), Some(request));
        prop_assert_eq!(leave(&thread), None);
    }

    #[test]
    fn products_are_right_or_too_large(left in factor(), right in factor()) {
        check_product(left, right);
    }
}

/// Products never wrap: they are right, or "too large" where they are past every real request.
#[track_caller]
fn check_product(left: u64, right: u64) {
    let exact = u128::from(left) * u128::from(right);
    for (number, [first, second, third]) in
        [(function::CALLOC, [left, right, 0]), (function::REALLOC_ARRAY, [0, left, right])]
    {
        let size = Request::from_arguments(number, first, second, third).size;
        let is_cut = size == u64::MAX && exact >= 1 << 40;
        assert!(u128::from(size) == exact || is_cut, "{left} x {right} gives {size}");
    }
}

/// The products of all numbers next to powers of two: where bounds are.
#[test]
fn products_at_the_bounds() {
    let near = |bit: u32| [(1_u64 << bit) - 1, 1 << bit, (1 << bit) + 1];
    let numbers: Vec<u64> = (0..64).flat_map(near).chain([u64::MAX]).collect();
    for left in &numbers {
        numbers.iter().for_each(|right| check_product(*left, *right));
    }
}

/// Numbers of every magnitude, and those next to powers of two.
fn factor() -> impl Strategy<Value = u64> {
    prop_oneof![
        (0_u32..64, any::<u64>()).prop_map(|(shift, value)| value >> shift),
        (0_u32..64, 0_u64..3).prop_map(|(bit, offset)| (1_u64 << bit).wrapping_add(offset).wrapping_sub(1)),
    ]
}

/// Where the prototypes of the C library put size and pointer.
#[test]
fn arguments_are_where_the_prototypes_put_them() {
    let [first, second, third] = [0x1000, 0x20, 0x3];
    let expected = [
        (function::MALLOC, first, 0),
        (function::CALLOC, first * second, 0),
        (function::REALLOC, second, first),
        (function::REALLOC_ARRAY, second * third, first),
        (function::POSIX_MEMALIGN, third, first),
        (function::ALIGNED_ALLOC, second, 0),
        (function::MEMALIGN, second, 0),
        (function::VALLOC, first, 0),
        (function::PVALLOC, first, 0),
    ];
    for (number, size, pointer) in expected {
        let request = Request::from_arguments(number, first, second, third);
        assert_eq!(request, Request { function: number, size, pointer });
        assert_eq!(request.is_realloc(), matches!(number, function::REALLOC | function::REALLOC_ARRAY));
    }
}

#[test]
fn a_failed_realloc_keeps_its_block() {
    let realloc = |size| Request::from_arguments(function::REALLOC, 0x1000, size, 0);
    assert_eq!(old_block(&realloc(64), 0), OldBlock::Kept);
    assert_eq!(old_block(&realloc(64), 0x1000), OldBlock::Ended);
    assert_eq!(old_block(&realloc(64), 0x2000), OldBlock::Ended);
    assert_eq!(old_block(&realloc(0), 0), OldBlock::Ended, "realloc(p, 0) frees");
}

/// A wrapper's realloc that jumps to the one that it wraps is one call, and its old block is the one that it was.
#[test]
fn a_realloc_that_jumps_to_another_is_continued() {
    let thread = Thread::default();
    let realloc = |pointer| Request::from_arguments(function::REALLOC, pointer, 64, 0);
    assert!(!is_continued(&thread, &realloc(0x1000), STACK), "no call yet");
    enter(&thread, &realloc(0x1000), STACK);
    assert!(is_continued(&thread, &realloc(0x1000), STACK));
    assert!(!is_continued(&thread, &realloc(0x1010), STACK), "another block: the first call was lost");
    assert!(!is_continued(&thread, &realloc(0x1000), STACK - 8), "a call, not a jump");
    let malloc = Request::from_arguments(function::MALLOC, 64, 0, 0);
    assert!(!is_continued(&thread, &malloc, STACK), "another function");
    enter(&thread, &realloc(0x1000), STACK);
    assert_eq!(leave(&thread), Some(realloc(0x1000)));
    assert_eq!(leave(&thread), None, "both return at one instruction");
    assert!(!is_continued(&thread, &realloc(0x1000), STACK), "it has returned");
}

/// The return of an inner call was not delivered: the outer one's is taken for it, and the next call puts things right.
#[test]
fn a_lost_inner_return_costs_one_call() {
    let thread = Thread::default();
    let realloc = Request::from_arguments(function::REALLOC, 0, 64, 0);
    let malloc = Request::from_arguments(function::MALLOC, 64, 0, 0);
    assert_eq!(enter(&thread, &realloc, STACK), Entered::Outermost { abandoned: false });
    assert_eq!(enter(&thread, &malloc, STACK - 48), Entered::Nested);
    assert_eq!(leave(&thread), None);
    assert_eq!(enter(&thread, &realloc, STACK), Entered::Outermost { abandoned: true });
    assert_eq!(leave(&thread), Some(realloc));
}

/// What the entry's stack pointer alone cannot tell: a call deeper than one whose return was lost looks nested, and so does a
/// free. It ends with the first call from as far out as the lost one.
#[test]
fn deeper_calls_look_nested_until_the_stack_comes_back() {
    let thread = Thread::default();
    let malloc = Request::from_arguments(function::MALLOC, 64, 0, 0);
    enter(&thread, &malloc, STACK);
    for depth in 1..100 {
        assert_eq!(enter(&thread, &malloc, STACK - depth * 256), Entered::Nested);
        assert_eq!(leave(&thread), None);
        assert!(is_nested_free(&thread, STACK - depth * 256));
    }
    assert_eq!(enter(&thread, &malloc, STACK), Entered::Outermost { abandoned: true });
    assert_eq!(leave(&thread), Some(malloc));
    assert!(!is_nested_free(&thread, STACK - 256));
}

/// A window ends while a thread is in malloc: it is not in it any more when the next one opens, however deep the next call is.
#[test]
fn a_call_of_an_earlier_window_is_forgotten() {
    let thread = Thread::default();
    let request = |size| Request::from_arguments(function::MALLOC, size, 0, 0);
    let call = |window: Window, size, stack_pointer| {
        look_into(&thread, window);
        enter(&thread, &request(size), stack_pointer)
    };
    let outermost = Entered::Outermost { abandoned: false };
    assert_eq!(call(Window::open(1), 100, STACK), outermost);
    assert_eq!(call(Window::open(2), 200, STACK - 64), outermost, "not inside the one before");
    look_into(&thread, Window::open(2));
    assert_eq!(leave(&thread).map(|request| request.size), Some(200));
    // One that began before the window returns in it.
    assert_eq!(call(Window::open(2), 300, STACK), outermost);
    look_into(&thread, Window::open(3));
    assert_eq!(leave(&thread), None);
    assert!(Window::closed(7).is_closed() && !Window::open(7).is_closed() && !Window(0).is_any());
    assert!(Window::closed(0).is_any(), "nothing counts before the first");
}
