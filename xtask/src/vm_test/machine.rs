//! Emulated machines: qemu's command line, and what a guest says on its serial console.

use super::packages;
use crate::command::{Invocation, Machine, Runner as _};
use anyhow::{Result, bail};
use std::path::Path;

/// Longest time for a guest, in seconds. It is no expectation: nothing that works comes near it.
const HANGS: &str = "900";
/// What the first program of a guest prints before anything else.
const MARKER: &str = "VM: up";

/// A kind of processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    X86_64,
    Arm64,
}

impl Architecture {
    pub const fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Arm64 => "arm64",
        }
    }

    pub const fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }
}

/// A machine to run.
#[derive(Debug, Clone, Copy)]
pub struct Guest {
    pub architecture: Architecture,
    /// Series of the kernel, such as `6.12`.
    pub kernel: &'static str,
    /// Boot with `preempt=full` instead of the kernel's default.
    pub full_preemption: bool,
}

impl Guest {
    pub fn name(&self) -> String {
        let preemption = if self.full_preemption { "full" } else { "default" };
        format!("{}-{}-{preemption}", self.architecture.name(), self.kernel)
    }

    /// Tests of `guest.py`. What is armed, and how, does not depend on preemption: with all of it, only what does is tested, that more threads run than there
    /// are processors. Nor does what an interpreter is like depend on the kernel: the newer ones are recorded on the newest kernel, and on
    /// the oldest of x86_64, where the way to arm points is another.
    pub fn tests(&self) -> String {
        let mut tests = vec!["stress"];
        if !self.full_preemption {
            tests = vec!["programs", "exact", "usual", "attached", "killed"];
            if self.architecture == Architecture::Arm64 {
                // Debian builds these with preemption that cannot be chosen: this is their only boot that records.
                tests.push("stress");
            }
            let [oldest, .., newest] = packages::KERNELS.map(|(kernel, _)| kernel);
            if self.kernel == newest || self.kernel == oldest && self.architecture == Architecture::X86_64 {
                tests.push("interpreters");
            }
        }
        tests.join(",")
    }
}

/// Run a guest to its end and return its console. A machine that has not come up is started once more, because the emulation of a starting kernel may
/// crash; one in which a test has begun is not.
pub fn run(qemu: &Path, guest: &Guest, kernel: &Path, image: &Path) -> Result<String> {
    let command = command(qemu, guest, kernel, image);
    let mut console = String::new();
    for _ in 0..2 {
        let outcome = Machine.run(&command)?;
        console = outcome.stdout;
        if console.contains(MARKER) {
            return Ok(console);
        }
        console += &outcome.stderr;
    }
    let lines: Vec<&str> = console.lines().collect();
    bail!("the machine did not come up: {}", lines[lines.len().saturating_sub(5)..].join(" | "))
}

/// qemu is started by the dynamic loader that came with it, so that the host's libraries do not matter.
fn command(qemu: &Path, guest: &Guest, kernel: &Path, image: &Path) -> Invocation {
    let inside = |path: &str| qemu.join(path).display().to_string();
    let (program, console, machine) = match guest.architecture {
        Architecture::X86_64 => ("qemu-system-x86_64", "ttyS0", ["-machine", "q35", "-cpu", "max"]),
        // A processor without pointer authentication, which is slow to emulate, and with an access flag that it sets itself, without which stacks are
        // cut (docs/decisions/0008-arm64.md).
        Architecture::Arm64 => {
            ("qemu-system-aarch64", "ttyAMA0", ["-machine", "virt,gic-version=3", "-cpu", "neoverse-n1"])
        }
    };
    let preemption = if guest.full_preemption { " preempt=full" } else { "" };
    // Points are armed and disarmed one by one on older kernels, and each waits for all processors: expedited, a recording on 6.1 takes half the time.
    // What mitigations keep apart nobody shares here, and emulating them takes time.
    let line = format!(
        "console={console} panic=-1 quiet{preemption} rcupdate.rcu_expedited=1 mitigations=off tests={}",
        guest.tests()
    );
    Invocation::new("timeout")
        .args([HANGS.to_owned(), inside("usr/lib64/ld-linux-x86-64.so.2"), "--library-path".to_owned()])
        .args([inside("usr/lib/x86_64-linux-gnu"), inside(&format!("usr/bin/{program}"))])
        .args(["-L".to_owned(), inside("usr/share/qemu"), "-L".to_owned(), inside("usr/share/seabios")])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg,thread=multi"])
        .args(machine)
        .args(["-m", "1024", "-smp", "2", "-no-reboot", "-serial", "stdio", "-kernel"])
        .args([kernel.display().to_string(), "-initrd".to_owned(), image.display().to_string()])
        .args(["-append".to_owned(), line])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_architecture_records_every_interpreter_and_every_kernel_one() {
        let tests =
            |architecture, kernel, full_preemption| Guest { architecture, kernel, full_preemption }.tests();
        assert_eq!(
            tests(Architecture::X86_64, "6.1", false),
            "programs,exact,usual,attached,killed,interpreters"
        );
        assert_eq!(tests(Architecture::X86_64, "6.12", false), "programs,exact,usual,attached,killed");
        assert_eq!(tests(Architecture::X86_64, "6.12", true), "stress");
        assert_eq!(tests(Architecture::Arm64, "6.1", false), "programs,exact,usual,attached,killed,stress");
        assert_eq!(tests(Architecture::Arm64, "6.12", false), "programs,exact,usual,attached,killed,stress");
        assert_eq!(
            tests(Architecture::Arm64, "7.2", false),
            "programs,exact,usual,attached,killed,stress,interpreters"
        );
    }

    #[test]
    fn a_guest_is_told_its_tests_and_its_preemption() {
        let guest = Guest { architecture: Architecture::X86_64, kernel: "6.12", full_preemption: true };
        assert_eq!(guest.name(), "x86_64-6.12-full");
        let line = command(Path::new("/q"), &guest, Path::new("/k"), Path::new("/i")).to_string();
        assert!(
            line.contains("console=ttyS0 panic=-1 quiet preempt=full ") && line.ends_with(" tests=stress"),
            "{line}"
        );
        assert!(line.contains("--library-path /q/usr/lib/x86_64-linux-gnu /q/usr/bin/qemu-system-x86_64"));
    }
}
