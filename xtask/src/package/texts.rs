//! Manual pages and completions, which the program makes from its own flags.

use crate::command::{Invocation, Runner};
use anyhow::{Result, ensure};
use std::path::Path;

/// Shells and where Debian looks for their completions, below `usr/share`.
const SHELLS: [(&str, &str); 3] = [
    ("bash", "bash-completion/completions/alloctrace"),
    ("zsh", "zsh/vendor-completions/_alloctrace"),
    ("fish", "fish/vendor_completions.d/alloctrace.fish"),
];

/// Files below `usr/share`, and what is in them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Texts {
    /// Names such as `alloctrace-record.1`.
    pub pages: Vec<(String, String)>,
    /// Paths.
    pub completions: Vec<(&'static str, String)>,
}

impl Texts {
    /// Those of a program.
    pub fn of(runner: &impl Runner, program: &Path) -> Result<Self> {
        let ask = |words: &[&str]| {
            let invocation = Invocation::new(program.display().to_string());
            runner.output(&invocation.args(words.iter().copied()))
        };
        let verbs = verbs(&ask(&["--help"])?);
        ensure!(!verbs.is_empty(), "`{} --help` names no verbs", program.display());
        let mut pages = vec![("alloctrace.1".to_owned(), ask(&["man"])?)];
        for verb in verbs {
            pages.push((format!("alloctrace-{verb}.1"), ask(&["man", &verb])?));
        }
        let mut completions = Vec::new();
        for (shell, path) in SHELLS {
            completions.push((path, ask(&["completions", shell])?));
        }
        Ok(Self { pages, completions })
    }
}

/// The verbs that `--help` lists, each behind two spaces below `Commands:`.
fn verbs(help: &str) -> Vec<String> {
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names = list.take_while(|line| !line.is_empty()).filter_map(|line| {
        let rest = line.strip_prefix("  ")?;
        // The rest of a long description is further in.
        rest.starts_with(|first: char| first.is_ascii_lowercase()).then(|| rest.split(' ').next()).flatten()
    });
    names.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::scripted::Script;

    const HELP: &str = "Which line\n\nUsage: alloctrace <COMMAND>\n\nCommands:\n  record       Record a\n               profile\n  man          Print\n\nOptions:\n  -h, --help\n";

    #[test]
    fn every_verb_has_a_page() {
        assert_eq!(verbs(HELP), ["record", "man"]);
        let program = Script::default()
            .says("/p --help", HELP)
            .says("/p man record", "of record")
            .says("/p man man", "of man")
            .says("/p man", "of all")
            .says("/p completions", "complete");
        let texts = Texts::of(&program, Path::new("/p")).unwrap();
        let pages: Vec<(&str, &str)> =
            texts.pages.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        assert_eq!(
            pages,
            [
                ("alloctrace.1", "of all"),
                ("alloctrace-record.1", "of record"),
                ("alloctrace-man.1", "of man")
            ]
        );
        assert_eq!(texts.completions.len(), 3);
    }

    #[test]
    fn a_program_without_verbs_is_an_error() {
        let program = Script::default().says("/p --help", "what?\n");
        assert!(Texts::of(&program, Path::new("/p")).is_err());
    }
}
