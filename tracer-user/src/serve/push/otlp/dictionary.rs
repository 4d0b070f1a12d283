//! The tables that all profiles of a request share: each string, function, place, stack and attribute once.
//!
//! The first entry of each is the empty one, as the protocol wants it. It must not know samples.

use std::hash::Hash;

use indexmap::IndexSet;
use rustc_hash::FxBuildHasher;

use super::proto::{
    AnyValue, Function, KeyValueAndUnit, Line, Link, Location, Mapping, ProfilesDictionary, Stack, Value,
};
use crate::profile::{Frame, FrameKind};

/// What a frame is, in the words of OpenTelemetry; a marker is no frame and has none.
const FRAME_TYPE: &str = "profile.frame.type";

/// Entries in the order in which they came, each once.
#[derive(Debug)]
struct Table<T>(IndexSet<T, FxBuildHasher>);

impl<T: Hash + Eq> Table<T> {
    fn new(empty: T) -> Self {
        Self(IndexSet::from_iter([empty]))
    }

    /// Its index. A table of two thousand million entries does not fit the memory that it would be made in; what comes after is "none".
    fn index(&mut self, entry: T) -> i32 {
        let (index, _) = self.0.insert_full(entry);
        i32::try_from(index).unwrap_or(0)
    }

    fn into_entries<U>(self, entry: impl FnMut(T) -> U) -> Vec<U> {
        self.0.into_iter().map(entry).collect()
    }
}

/// All tables, growing.
#[derive(Debug)]
pub struct Dictionary {
    strings: Table<String>,
    functions: Table<Function>,
    locations: Table<Location>,
    stacks: Table<Stack>,
    attributes: Table<(i32, Option<Value>)>,
}

impl Default for Dictionary {
    fn default() -> Self {
        Self {
            strings: Table::new(String::new()),
            functions: Table::new(Function::default()),
            locations: Table::new(Location::default()),
            stacks: Table::new(Stack::default()),
            attributes: Table::new((0, None)),
        }
    }
}

impl Dictionary {
    /// The index of a string.
    pub fn string(&mut self, text: &str) -> i32 {
        if let Some(index) = self.strings.0.get_index_of(text) {
            return i32::try_from(index).unwrap_or(0);
        }
        self.strings.index(text.to_owned())
    }

    /// The index of an attribute.
    pub fn attribute(&mut self, key: &str, value: Value) -> i32 {
        let key = self.string(key);
        self.attributes.index((key, Some(value)))
    }

    /// The index of a stack of places, innermost first.
    pub fn stack(&mut self, locations: Vec<i32>) -> i32 {
        self.stacks.index(Stack { location_indices: locations })
    }

    /// The index of the place that a frame is.
    pub fn location(&mut self, frame: &Frame) -> i32 {
        let name_strindex = self.string(&frame.function);
        let filename_strindex = self.string(frame.file.as_deref().unwrap_or_default());
        let start_line = i64::from(frame.first_line);
        let function_index = self.functions.index(Function { name_strindex, filename_strindex, start_line });
        let frame_type = match frame.kind {
            FrameKind::Python => Some("cpython"),
            FrameKind::Native => Some("native"),
            FrameKind::Marker => None,
        };
        let attribute = frame_type.map(|text| self.attribute(FRAME_TYPE, Value::Text(text.to_owned())));
        let lines = vec![Line { function_index, line: i64::from(frame.line) }];
        self.locations.index(Location { lines, attribute_indices: attribute.into_iter().collect() })
    }

    /// As the message that goes with the profiles.
    pub fn into_message(self) -> ProfilesDictionary {
        ProfilesDictionary {
            mapping_table: vec![Mapping {}],
            location_table: self.locations.into_entries(|location| location),
            function_table: self.functions.into_entries(|function| function),
            link_table: vec![Link {}],
            string_table: self.strings.into_entries(|text| text),
            attribute_table: self.attributes.into_entries(|(key_strindex, value)| KeyValueAndUnit {
                key_strindex,
                value: value.map(|value| AnyValue { value: Some(value) }),
            }),
            stack_table: self.stacks.into_entries(|stack| stack),
        }
    }
}
