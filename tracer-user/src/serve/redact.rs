//! Names of files, functions and commands replaced by hashes: for those who may see how much memory goes where, and not what the
//! program is.
//!
//! The same name is the same hash in every answer, so that profiles can still be compared; with a key of one's own nobody can find names
//! by trying them. Numbers, versions and the reasons why something is not known stay; what such a reason quotes does not. Pure: it must
//! not know who asks.

use std::{collections::HashMap, fmt, fmt::Write as _};

use ring::hmac;

use crate::profile::{
    Coverage, Figures, Frame, FrameId, FrameKind, Known, Look, Process, Profile, Recording, Residence,
    Sample, Series,
};

/// Names that the interpreter gives and that say nothing of the program.
const HARMLESS_FUNCTIONS: [&str; 6] =
    ["<module>", "<lambda>", "<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>"];
/// Allocators of CPython itself.
const HARMLESS_ALLOCATORS: [&str; 4] = ["", "pymalloc", "malloc", "mimalloc"];
/// 64 bits: two of a million names collide once in ten million profiles.
const HASH_BYTES: usize = 8;

/// Replaces names. Cheap to clone.
#[derive(Clone)]
pub struct Redactor {
    key: hmac::Key,
}

impl Redactor {
    /// With an empty key, hashes are those of every other sidecar without one: comparable, and open to guesses.
    #[must_use]
    pub fn new(key: &[u8]) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, key) }
    }

    /// A profile without names.
    #[must_use]
    pub fn profile(&self, profile: &Profile) -> Profile {
        let mut frames = indexmap::IndexSet::default();
        let places: Vec<FrameId> = profile
            .frames
            .iter()
            .map(|frame| FrameId(u32::try_from(frames.insert_full(self.frame(frame)).0).unwrap_or(u32::MAX)))
            .collect();
        let place = |old: FrameId| places.get(old.0 as usize).copied().unwrap_or(old);
        let sample =
            |sample: &Sample| Sample { stack: sample.stack.iter().map(place).collect(), ..sample.clone() };
        Profile {
            recording: self.recording(&profile.recording),
            processes: profile.processes.iter().map(|process| self.process(process)).collect(),
            samples: profile.samples.iter().map(sample).collect(),
            frames,
        }
    }

    /// A process without names.
    #[must_use]
    pub fn process(&self, process: &Process) -> Process {
        let texts = |texts: &[String]| texts.iter().map(|text| self.text(text)).collect();
        let is_harmless = HARMLESS_ALLOCATORS.contains(&&*process.allocator);
        Process {
            command: self.command(&process.command),
            mallocs: process.mallocs.iter().map(|file| self.file(file)).collect(),
            unseen: texts(&process.unseen),
            allocator: if is_harmless {
                process.allocator.clone()
            } else {
                self.hash("allocator", &process.allocator)
            },
            residence: process.residence.as_ref().map(|residence| self.residence(residence)),
            memory: self.series(&process.memory),
            ..process.clone()
        }
    }

    /// Figures whose reasons quote nothing.
    #[must_use]
    pub fn figures(&self, figures: &Figures) -> Figures {
        self.parts(figures, &mut HashMap::new())
    }

    /// A command line as a hash.
    #[must_use]
    pub fn command(&self, command: &str) -> String {
        self.hash("command", command)
    }

    /// The name of an incident as a hash.
    #[must_use]
    pub fn incident(&self, name: &str) -> String {
        self.hash("incident", name)
    }

    /// A sentence without what it quotes: words in backticks, and words that are paths.
    #[must_use]
    pub fn text(&self, text: &str) -> String {
        let mut clean = String::with_capacity(text.len());
        // Every second part is between backticks; one without an end is taken for a quote up to the end.
        for (place, part) in text.split('`').enumerate() {
            if place % 2 == 1 {
                let _ = write!(clean, "`{}`", self.hash("name", part));
                continue;
            }
            for piece in part.split_inclusive(char::is_whitespace) {
                let word = piece.trim_end();
                if word.contains('/') || word.contains(".py") || word.contains(".so") {
                    clean.push_str(&self.hash("name", word));
                    clean.push_str(&piece[word.len()..]);
                } else {
                    clean.push_str(piece);
                }
            }
        }
        clean
    }

    fn frame(&self, frame: &Frame) -> Frame {
        // A marker is a sentence of ours.
        let function = match frame.kind {
            FrameKind::Marker => self.text(&frame.function),
            _ if HARMLESS_FUNCTIONS.contains(&&*frame.function) => frame.function.clone(),
            _ => self.hash("function", &frame.function),
        };
        Frame { function, file: frame.file.as_deref().map(|file| self.file(file)), ..frame.clone() }
    }

    fn file(&self, file: &str) -> String {
        self.hash("file", file)
    }

    fn hash(&self, what: &str, name: &str) -> String {
        let tag = hmac::sign(&self.key, name.as_bytes());
        let mut text = format!("{what}-");
        for byte in tag.as_ref().iter().take(HASH_BYTES) {
            let _ = write!(text, "{byte:02x}");
        }
        text
    }

    fn recording(&self, recording: &Recording) -> Recording {
        let mut recording = recording.clone();
        if let Coverage::Unmeasured { unmeasured } = &mut recording.coverage {
            *unmeasured = self.text(unmeasured);
        }
        if let Some(windows) = &mut recording.windows {
            let texts = [&mut windows.live_unknown, &mut windows.stopped];
            texts.into_iter().flatten().for_each(|text| *text = self.text(text));
        }
        recording
    }

    fn residence(&self, residence: &Residence) -> Residence {
        match residence {
            Residence::Compared { .. } => residence.clone(),
            Residence::Uncompared { uncompared } => {
                Residence::Uncompared { uncompared: self.text(uncompared) }
            }
        }
    }

    fn series(&self, series: &Series) -> Series {
        let mut clean = Series::default();
        // Reasons are few and looks are many.
        let mut known = HashMap::new();
        for look in series.looks() {
            let figures = self.parts(&look.figures, &mut known);
            clean.push(Look { since_nanoseconds: look.since_nanoseconds, figures }, usize::MAX);
        }
        clean
    }

    fn parts(&self, figures: &Figures, known: &mut HashMap<String, String>) -> Figures {
        Figures {
            pools: self.known(&figures.pools, known),
            malloc: self.known(&figures.malloc, known),
            resident: self.known(&figures.resident, known),
        }
    }

    fn known<T: Clone>(&self, part: &Known<T>, known: &mut HashMap<String, String>) -> Known<T> {
        match part {
            Known::Known(part) => Known::Known(part.clone()),
            Known::Unknown { unknown } => {
                let clean = known.entry(unknown.clone()).or_insert_with(|| self.text(unknown));
                Known::Unknown { unknown: clean.clone() }
            }
        }
    }
}

impl fmt::Debug for Redactor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Redactor(key hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_lose_what_they_quote() {
        let redactor = Redactor::new(b"key");
        let text = redactor.text("malloc of `/usr/lib/x.so` is not known, see /srv/app/a.py: or `open");
        assert!(text.starts_with("malloc of `name-") && text.contains("is not known, see name-"), "{text}");
        for secret in ["usr", "x.so", "srv", "a.py", "open"] {
            assert!(!text.contains(secret), "{text}");
        }
        assert_eq!(redactor.text("blocks are counted in windows only"), "blocks are counted in windows only");
    }

    /// Computed by OpenSSL: `printf views.py | openssl dgst -sha256 -hmac key`.
    #[test]
    fn hashes_are_those_of_the_standard_and_of_the_key() {
        assert_eq!(Redactor::new(b"key").file("views.py"), "file-a720f1a223d47fb2");
        assert_ne!(Redactor::new(b"key").file("views.py"), Redactor::new(b"other").file("views.py"));
        assert_eq!(format!("{:?}", Redactor::new(b"key")), "Redactor(key hidden)");
    }
}
