//! `alloctrace probe`: asks a sidecar whether it is well, for whoever has no other way: a container without a shell, whose sidecar takes a token.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;

use crate::serve::access::Token;

/// For all of it; a sidecar that takes longer is not well.
const PATIENCE: Duration = Duration::from_secs(5);
/// Of the answer.
const MOST_BYTES: u64 = 64 << 10;

/// Ask a sidecar whether it is well
#[derive(Debug, Args)]
pub struct Arguments {
    /// What to ask: /healthz or /readyz
    #[arg(value_name = "PATH", default_value = "/healthz")]
    path: String,
    /// Where it answers
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7070")]
    address: SocketAddr,
    /// Its token
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let Arguments { path, address, token_file } = arguments;
    if !path.starts_with('/') || path.contains(|letter: char| letter.is_whitespace() || letter.is_control()) {
        bail!("`{path}` is no path: give /healthz or /readyz");
    }
    let authorization = match token_file {
        Some(file) => format!("Authorization: Bearer {}\r\n", Token::read(file)?.expose()),
        None => String::new(),
    };
    let mut stream = TcpStream::connect_timeout(address, PATIENCE)
        .with_context(|| format!("failed to reach a sidecar at `{address}`"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\n{authorization}Connection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(MOST_BYTES).read_to_end(&mut answer).context("failed to read the sidecar's answer")?;
    let answer = String::from_utf8_lossy(&answer);
    if answer.split(' ').nth(1) != Some("200") {
        let line = answer.lines().next().unwrap_or_default();
        let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
        bail!("the sidecar says `{line}`: {}", body.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    Ok(ExitCode::SUCCESS)
}
