//! The environment that a process was started with.
//!
//! It must not know what a variable means. What a process has set or removed since does not show.

use std::path::Path;

/// The value of a variable; `None` if it was not set, or cannot be read.
pub fn started_with(proc_root: &Path, pid: u32, name: &str) -> Option<String> {
    let bytes = std::fs::read(proc_root.join(pid.to_string()).join("environ")).ok()?;
    value_of(&bytes, name)
}

fn value_of(environment: &[u8], name: &str) -> Option<String> {
    let mut entries = environment.split(|byte| *byte == 0);
    let value = entries.find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
    Some(String::from_utf8_lossy(value).into_owned())
}

#[cfg(test)]
mod tests {
    use super::value_of;

    #[test]
    fn a_variable_is_found_by_its_whole_name() {
        let environment = b"PYTHONMALLOCSTATS=1\0PYTHONMALLOC=mimalloc\0EMPTY=\0\xff\xfe\0";
        assert_eq!(value_of(environment, "PYTHONMALLOC").as_deref(), Some("mimalloc"));
        assert_eq!(value_of(environment, "EMPTY").as_deref(), Some(""));
        assert_eq!(value_of(environment, "MALLOC"), None);
        assert_eq!(value_of(b"", "PYTHONMALLOC"), None);
    }
}
