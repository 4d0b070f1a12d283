//! `cargo xtask build-ebpf [--check]`: the eBPF objects in `tracer-ebpf/prebuilt`, one for each architecture, the same bit for bit wherever they are built.
//!
//! They are checked in so that a user needs stable Rust only. What decides their bytes besides our sources is written down beside them, in `TOOLCHAIN`:
//! the compiler, its LLVM and bpf-linker. Everything else is kept out of them: the folders of the checkout, of cargo and of the compiler are renamed
//! (`--remap-path-prefix`), the host's `RUSTFLAGS` do not count, DWARF is cut off once BTF has been made of it. `--check` builds anew in a folder of its own and
//! compares; with another toolchain than the recorded one that would prove nothing, so it says so instead.
//!
//! One object per architecture, because aya-ebpf picks the registers of a trap when it is built: a wrong object loads, attaches, counts and reads garbage.

use crate::command::{Invocation, Machine, Runner};
use crate::toolchain::{LINKER, LINKER_VERSION, Toolchain, linker_version};
use crate::workspace;
use anyhow::{Context as _, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};

const ARCHITECTURES: [&str; 2] = ["x86_64", "aarch64"];
const TARGET: &str = "bpfel-unknown-none";
const PROFILE: &str = "bpf";
const SETUP: &str = "run `cargo xtask setup` first";

/// Flags of `build-ebpf`.
#[derive(clap::Args)]
pub struct Args {
    /// Build elsewhere and compare with the checked-in objects, bit for bit
    #[arg(long)]
    check: bool,
}

/// One built object.
struct Object {
    architecture: &'static str,
    bytes: Vec<u8>,
}

impl Object {
    fn path(&self) -> PathBuf {
        Path::new(workspace::PREBUILT).join(format!("tracer.{}.o", self.architecture))
    }
}

/// Build both objects; write them, or with `--check` compare them.
pub fn run(args: &Args) -> Result<()> {
    if args.check {
        return check();
    }
    let root = workspace::root();
    let toolchain = Toolchain::detect(&Machine, &root)?;
    let record = record(&toolchain, linker_version(&Machine).as_deref())?;
    let objects = build(&Machine, &root, &toolchain, &root.join("target/bpf"))?;
    write(&root, &objects, &record)
}

/// Build both objects from nothing and compare them with the checked-in ones.
pub fn check() -> Result<()> {
    let root = workspace::root();
    let toolchain = Toolchain::detect(&Machine, &root)?;
    check_record(&root, &record(&toolchain, linker_version(&Machine).as_deref())?)?;
    let folder = workspace::scratch().join("bpf-check");
    remove(&folder)?;
    let objects = build(&Machine, &root, &toolchain, &folder)?;
    remove(&folder)?;
    compare(&root, &objects)
}

/// What `TOOLCHAIN` says when these tools build; an error where they cannot.
fn record(toolchain: &Toolchain, linker: Option<&str>) -> Result<String> {
    let Some(linker) = linker else { bail!("`{LINKER}` is missing or does not start; {SETUP}") };
    ensure!(
        linker == LINKER_VERSION,
        "`{LINKER}` is version {linker}, but the objects take {LINKER_VERSION}; {SETUP}"
    );
    ensure!(
        toolchain.has_library_sources(),
        "the sources of `core` are missing at `{}`; {SETUP}",
        toolchain.library_sources().display()
    );
    Ok(format!("{}\nLLVM {}\n{LINKER} {linker}\n", toolchain.rustc, toolchain.llvm))
}

fn check_record(root: &Path, record: &str) -> Result<()> {
    let path = root.join(workspace::PREBUILT).join("TOOLCHAIN");
    let recorded = fs::read_to_string(&path).with_context(|| {
        format!(
            "cannot read `{}`; build the objects with `cargo xtask build-ebpf` and commit them",
            path.display()
        )
    })?;
    ensure!(
        recorded == record,
        "the checked-in objects were built by {}, this machine has {}, which gives other bytes; use that toolchain (`rustup toolchain install VERSION`, \
         `RUSTUP_TOOLCHAIN=VERSION cargo xtask build-ebpf --check`), or move to this one with `cargo xtask build-ebpf` and commit the objects",
        one_line(&recorded),
        one_line(record)
    );
    Ok(())
}

fn one_line(record: &str) -> String {
    record.lines().collect::<Vec<_>>().join(", ")
}

/// Build the objects in `folder`, one after the other: the second reuses all that does not depend on the architecture.
fn build(runner: &impl Runner, root: &Path, toolchain: &Toolchain, folder: &Path) -> Result<Vec<Object>> {
    ARCHITECTURES
        .into_iter()
        .map(|architecture| {
            compile(
                runner,
                &cargo(root, folder, architecture, &compiler_flags(root, toolchain, architecture)?),
            )
            .with_context(|| format!("cannot build the {architecture} object"))?;
            let built = folder.join(TARGET).join(PROFILE).join("tracer");
            let bytes = without_dwarf(runner, toolchain, &built)?;
            Ok(Object { architecture, bytes })
        })
        .collect()
}

/// Run the compiler and pass on what it says, warnings too: no other task compiles the programs.
fn compile(runner: &impl Runner, cargo: &Invocation) -> Result<()> {
    let outcome = runner.run(cargo)?;
    eprint!("{}", outcome.stderr);
    ensure!(outcome.success, "`{cargo}` failed");
    Ok(())
}

fn cargo(root: &Path, folder: &Path, architecture: &str, flags: &[String]) -> Invocation {
    Invocation::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()))
        .args([
            "build",
            "--quiet",
            "--locked",
            "--package",
            "tracer-ebpf",
            "--bin",
            "tracer",
            "--features",
            "kernel",
        ])
        .args(["--profile", PROFILE, "-Zbuild-std=core", "--target", TARGET, "--target-dir"])
        .args([folder.display().to_string()])
        // The objects need two unstable things, core for a target without a prebuilt one among them, and must not need nightly.
        .env("RUSTC_BOOTSTRAP", "1")
        // Not CARGO_CFG_BPF_TARGET_ARCH: aya-build takes that one to mean that cargo has passed the cfg already, and then passes none.
        .env("AYA_BPF_TARGET_ARCH", architecture)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .without_env("CARGO_CFG_BPF_TARGET_ARCH")
        .without_env("CARGO_BUILD_TARGET")
        .without_env("RUSTC_WRAPPER")
        .directory(root)
}

/// Flags for the compiler: BTF, one instruction set, and no folder of this machine in the object.
fn compiler_flags(root: &Path, toolchain: &Toolchain, architecture: &str) -> Result<Vec<String>> {
    let mut flags: Vec<String> = vec![
        format!("-Clinker={LINKER}"),
        // v3: 32-bit arithmetic and its jumps, understood by every kernel since 5.1.
        "-Ctarget-cpu=v3".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // aya's build script sets this for aya's crates; ours choose registers by it, too.
        format!("--cfg=bpf_target_arch=\"{architecture}\""),
        "--check-cfg=cfg(bpf_target_arch,values(\"x86_64\",\"aarch64\"))".to_owned(),
    ];
    let mut rename =
        |from: &Path, to: &str| flags.push(format!("--remap-path-prefix={}={to}", from.display()));
    rename(root, "/alloctrace");
    rename(&toolchain.sysroot.join("lib/rustlib/src/rust"), "/rust");
    // The folder below registry/src is named after the server that the crates came from.
    for folder in registry_sources()? {
        rename(&folder, "/registry");
    }
    Ok(flags)
}

fn registry_sources() -> Result<Vec<PathBuf>> {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    let sources =
        home.context("cannot tell where cargo keeps crates; set `CARGO_HOME`")?.join("registry/src");
    let entries =
        fs::read_dir(&sources).with_context(|| format!("failed to list `{}`", sources.display()))?;
    let mut folders: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    folders.sort();
    Ok(folders)
}

/// The object without the debug sections that BTF was made of, and without BTF's table of source lines, which serves the verifier's log only and would make
/// every moved comment another object. What is left is a tenth of the size.
fn without_dwarf(runner: &impl Runner, toolchain: &Toolchain, built: &Path) -> Result<Vec<u8>> {
    let stripped = built.with_extension("stripped");
    let table = built.with_extension("btf-ext");
    let run = |arguments: Vec<String>, from: &Path| {
        let objcopy = Invocation::new(toolchain.objcopy().display().to_string())
            .args(arguments)
            .args([from.display().to_string(), stripped.display().to_string()])
            .env("LD_LIBRARY_PATH", toolchain.libraries().display().to_string());
        runner.output(&objcopy).context("cannot strip the object; is this a compiler from rustup?")
    };
    let strip = ["--strip-debug", "--remove-section=.rel.BTF.ext"].map(str::to_owned);
    let dump = format!("--dump-section=.BTF.ext={}", table.display());
    run([strip.as_slice(), &[dump]].concat(), built)?;
    let bytes = fs::read(&table).with_context(|| format!("failed to read `{}`", table.display()))?;
    fs::write(&table, functions_only(&bytes)?)
        .with_context(|| format!("failed to write `{}`", table.display()))?;
    run(vec![format!("--update-section=.BTF.ext={}", table.display())], &stripped.clone())?;
    fs::read(&stripped).with_context(|| format!("failed to read `{}`", stripped.display()))
}

/// The `.BTF.ext` section (Documentation/bpf/btf.rst) with its table of functions, which the kernel asks for where a function is handed to a helper, and
/// without those of source lines and relocations.
fn functions_only(section: &[u8]) -> Result<Vec<u8>> {
    const HEADER_BYTES: usize = 32;
    let word = |at: usize| -> Result<usize> {
        let bytes = section.get(at..at + 4).context("`.BTF.ext` is cut off")?;
        Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
    };
    let (header, offset, length) = (word(4)?, word(8)?, word(12)?);
    let table = section.get(header + offset..header + offset + length);
    let table = table.context("`.BTF.ext` has no table of functions")?;
    let start = section.get(..4).context("`.BTF.ext` is cut off")?;
    let length = u32::try_from(length)?;
    let mut kept = start.to_vec();
    for word in [HEADER_BYTES as u32, 0, length, length, 0, length, 0] {
        kept.extend_from_slice(&word.to_le_bytes());
    }
    kept.extend_from_slice(table);
    Ok(kept)
}

fn write(root: &Path, objects: &[Object], record: &str) -> Result<()> {
    let folder = root.join(workspace::PREBUILT);
    fs::create_dir_all(&folder).with_context(|| format!("failed to create `{}`", folder.display()))?;
    for object in objects {
        let path = root.join(object.path());
        fs::write(&path, &object.bytes).with_context(|| format!("failed to write `{}`", path.display()))?;
        println!("{} ({} bytes)", object.path().display(), object.bytes.len());
    }
    let path = folder.join("TOOLCHAIN");
    fs::write(&path, record).with_context(|| format!("failed to write `{}`", path.display()))
}

fn compare(root: &Path, objects: &[Object]) -> Result<()> {
    let stale: Vec<String> = objects
        .iter()
        .filter(|object| fs::read(root.join(object.path())).ok().as_ref() != Some(&object.bytes))
        .map(|object| format!("`{}`", object.path().display()))
        .collect();
    ensure!(
        stale.is_empty(),
        "{} not what the sources give; run `cargo xtask build-ebpf` and commit the result",
        if stale.len() == 1 { format!("{} is", stale[0]) } else { format!("{} are", stale.join(" and ")) }
    );
    println!("the checked-in eBPF objects are what the sources give");
    Ok(())
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("failed to remove `{}`", folder.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toolchain(sysroot: &Path) -> Toolchain {
        Toolchain {
            rustc: "rustc 1.95.0 (59807616e 2026-04-14)".to_owned(),
            release: "1.95.0".to_owned(),
            llvm: "22.1.2".to_owned(),
            host: "x86_64-unknown-linux-gnu".to_owned(),
            sysroot: sysroot.to_path_buf(),
        }
    }

    fn checkout(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    #[test]
    fn what_is_missing_to_build_is_named_and_setup_with_it() {
        let empty = checkout(&[]);
        let error = |linker| record(&toolchain(empty.path()), linker).unwrap_err().to_string();
        assert_eq!(error(None), "`bpf-linker` is missing or does not start; run `cargo xtask setup` first");
        assert!(
            error(Some("0.9.13")).starts_with("`bpf-linker` is version 0.9.13, but the objects take 0.13.0")
        );
        assert!(error(Some(LINKER_VERSION)).starts_with("the sources of `core` are missing at"));
    }

    #[test]
    fn another_compiler_is_no_stale_object() {
        let root =
            checkout(&[("tracer-ebpf/prebuilt/TOOLCHAIN", "rustc 1.94.0\nLLVM 21.1.8\nbpf-linker 0.13.0\n")]);
        let error = check_record(root.path(), "rustc 1.95.0\nLLVM 22.1.2\nbpf-linker 0.13.0\n")
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with(
                "the checked-in objects were built by rustc 1.94.0, LLVM 21.1.8, bpf-linker 0.13.0, this machine has rustc 1.95.0, LLVM 22.1.2, bpf-linker 0.13.0"
            ),
            "{error}"
        );
        let error = check_record(checkout(&[]).path(), "").unwrap_err().to_string();
        assert!(error.contains("build the objects with `cargo xtask build-ebpf` and commit them"), "{error}");
    }

    #[test]
    fn stale_and_missing_objects_are_named() {
        let root = checkout(&[
            ("tracer-ebpf/prebuilt/tracer.x86_64.o", "old"),
            ("tracer-ebpf/prebuilt/tracer.aarch64.o", "same"),
        ]);
        let object = |architecture, text: &str| Object { architecture, bytes: text.as_bytes().to_vec() };
        let error = |objects: &[Object]| compare(root.path(), objects).unwrap_err().to_string();
        assert_eq!(
            error(&[object("x86_64", "new"), object("aarch64", "same")]),
            "`tracer-ebpf/prebuilt/tracer.x86_64.o` is not what the sources give; run `cargo xtask build-ebpf` and commit the result"
        );
        assert!(
            error(&[object("x86_64", "new"), object("aarch64", "new")])
                .contains(".o` are not what the sources give")
        );
        assert!(compare(root.path(), &[object("aarch64", "same")]).is_ok());
    }

    #[test]
    fn the_build_names_the_architecture_and_never_cargos_own_cfg() {
        let invocation =
            cargo(Path::new("here"), Path::new("there"), "aarch64", &["-Ca".to_owned(), "-Cb".to_owned()]);
        assert!(invocation.environment.contains(&("AYA_BPF_TARGET_ARCH".to_owned(), "aarch64".to_owned())));
        assert!(
            invocation
                .environment
                .contains(&("CARGO_ENCODED_RUSTFLAGS".to_owned(), "-Ca\u{1f}-Cb".to_owned()))
        );
        assert!(invocation.without.contains(&"CARGO_CFG_BPF_TARGET_ARCH".to_owned()));
    }
}
