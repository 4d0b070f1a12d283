//! The resolver on definitions made by hand.

use proptest::prelude::*;

use super::*;
use crate::discover::layout::layout;

const PROCESS: ProcessIndex = ProcessIndex(3);
/// `co_code_adaptive` of 3.11.
const START: u32 = 184;

fn resolver(limits: Limits) -> Resolver {
    let Some(layout) = layout(3, 11) else { panic!("no row for 3.11") };
    let mut resolver = Resolver::new(limits);
    resolver.add_process(PROCESS, *layout);
    resolver
}

fn text(text: &str) -> RawString {
    RawString { state: 1 << 2 | 1 << 5, length: text.len() as u64, bytes: text.as_bytes().to_vec() }
}

/// A function of ten instructions that begins at `first_line`, all on the line after it; traceable from the third on.
fn definition(name: &str, first_line: i32) -> CodeDefinition {
    CodeDefinition {
        name: text("short"),
        qualified_name: Some(text(name)),
        file: text("file.py"),
        first_line,
        first_traceable: 2,
        line_table: vec![0x80 | 11 << 3 | 7, 0, 0, 0x80 | 10 << 3 | 1, 0, 0],
        line_table_complete: true,
    }
}

fn frame(code: u64, unit: u32) -> RawFrame {
    RawFrame { code, instruction: START + 2 * unit, fingerprint: 1 }
}

fn names(resolver: &Resolver, ids: &[FrameId]) -> Vec<(String, u32)> {
    let frames = ids.iter().filter_map(|id| resolver.frames().get_index(id.0 as usize));
    frames.map(|frame| (frame.function.clone(), frame.line)).collect()
}

#[track_caller]
fn check(resolver: &mut Resolver, stack: &[RawFrame], expected: &[(&str, u32)]) {
    let ids = resolver.resolve(PROCESS, stack);
    let expected: Vec<_> = expected.iter().map(|(name, line)| ((*name).to_owned(), *line)).collect();
    assert_eq!(names(resolver, &ids), expected);
}

#[test]
fn names_and_lines_innermost_first() {
    let mut resolver = resolver(Limits::default());
    resolver.define(PROCESS, 1, 1, &definition("inner", 10));
    resolver.define(PROCESS, 2, 1, &definition("outer", 20));
    check(&mut resolver, &[frame(1, 4), frame(2, 9)], &[("inner", 11), ("outer", 21)]);
    assert_eq!(resolver.counts(), ResolveCounts { named: 2, ..ResolveCounts::default() });
    assert_eq!(resolver.frames().get_index(0).map(|frame| frame.first_line), Some(10));
}

#[test]
fn functions_that_have_not_begun_are_left_out() {
    let mut resolver = resolver(Limits::default());
    resolver.define(PROCESS, 1, 1, &definition("inner", 10));
    resolver.define(PROCESS, 2, 1, &definition("outer", 20));
    check(&mut resolver, &[frame(1, 1), frame(2, 2)], &[("outer", 21)]);
    let before = RawFrame { instruction: START - 2, ..frame(1, 0) };
    check(&mut resolver, &[before], &[("no Python frame", 0)]);
    assert_eq!((resolver.counts().incomplete, resolver.counts().unresolved()), (2, 0));
}

#[test]
fn what_is_not_known_says_why() {
    let mut resolver = resolver(Limits::default());
    check(&mut resolver, &[], &[("no Python frame", 0)]);
    check(&mut resolver, &[frame(9, 3)], &[("code object not read", 0)]);
    let stranger = resolver.resolve(ProcessIndex(7), &[frame(1, 1)]);
    assert_eq!(names(&resolver, &stranger), [("interpreter not known".to_owned(), 0)]);
    let unreadable = CodeDefinition { file: RawString::default(), ..definition("f", 1) };
    resolver.define(PROCESS, 1, 1, &unreadable);
    check(&mut resolver, &[frame(1, 3)], &[("f", 2)]);
    assert_eq!((resolver.counts().code_undefined, resolver.counts().name_unreadable), (1, 1));
}

#[test]
fn the_same_address_with_another_fingerprint_is_another_code() {
    let mut resolver = resolver(Limits::default());
    resolver.define(PROCESS, 1, 1, &definition("old", 10));
    resolver.define(PROCESS, 1, 2, &definition("new", 30));
    let new = RawFrame { fingerprint: 2, ..frame(1, 3) };
    check(&mut resolver, &[frame(1, 3), new], &[("old", 11), ("new", 31)]);
}

#[test]
fn a_cut_table_falls_to_the_first_line() {
    let mut resolver = resolver(Limits::default());
    let mut cut = definition("f", 10);
    cut.line_table.truncate(4);
    cut.line_table_complete = false;
    resolver.define(PROCESS, 1, 1, &cut);
    check(&mut resolver, &[frame(1, 3), frame(1, 9)], &[("f", 11), ("f", 10)]);
    assert_eq!(resolver.counts().table_cut, 1);
}

#[test]
fn an_instruction_outside_the_code_has_no_line() {
    let mut resolver = resolver(Limits::default());
    resolver.define(PROCESS, 1, 1, &definition("f", 10));
    check(&mut resolver, &[frame(1, 10)], &[("f", 0)]);
    assert_eq!((resolver.counts().table_wrong, resolver.counts().unresolved()), (1, 1));
}

#[test]
fn limits_hold_and_equal_tables_are_kept_once() {
    let mut resolver = resolver(Limits { line_table_bytes: 6, definitions: 3 });
    resolver.define(PROCESS, 1, 1, &definition("a", 10));
    resolver.define(PROCESS, 2, 1, &definition("b", 20));
    let other = CodeDefinition { line_table: vec![0x80 | 10 << 3 | 7, 0, 0], ..definition("c", 30) };
    resolver.define(PROCESS, 3, 1, &other);
    resolver.define(PROCESS, 4, 1, &definition("d", 40));
    let stack = [frame(1, 3), frame(2, 3), frame(3, 3), frame(4, 3)];
    check(&mut resolver, &stack, &[("a", 11), ("b", 21), ("c", 30), ("code object not read", 0)]);
    assert_eq!((resolver.counts().table_not_kept, resolver.counts().definitions_refused), (1, 1));
}

proptest! {
    #[test]
    fn any_definition_gives_an_answer(
        state: u32, length: u64, bytes in proptest::collection::vec(any::<u8>(), 0..64),
        line_table in proptest::collection::vec(any::<u8>(), 0..64),
        first_line: i32, first_traceable: u32, instruction: u32, line_table_complete: bool, minor in 8..14_u8,
    ) {
        let string = RawString { state, length, bytes };
        let (name, file, qualified_name) = (string.clone(), string.clone(), Some(string));
        let definition = CodeDefinition {
            name, qualified_name, file, first_line, first_traceable, line_table, line_table_complete,
        };
        let mut resolver = Resolver::new(Limits::default());
        let Some(layout) = layout(3, minor) else { panic!("no row for 3.{minor}") };
        resolver.add_process(PROCESS, *layout);
        resolver.define(PROCESS, 1, 1, &definition);
        let ids = resolver.resolve(PROCESS, &[RawFrame { code: 1, instruction, fingerprint: 1 }]);
        prop_assert_eq!(ids.len(), 1);
    }
}
