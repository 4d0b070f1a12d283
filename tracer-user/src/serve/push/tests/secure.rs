//! Pushing over TLS: to a receiver whose authority is trusted, and not to others.
//!
//! `tls/` has an authority, and a server's certificate for `localhost` that it signed, made with openssl for a hundred years; its own key is gone.

use std::{
    io::{BufReader, Write},
    net::TcpListener,
    sync::mpsc,
    thread,
};

use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use super::*;
use server::{Heard, read};

const AUTHORITY: &str = include_str!("tls/authority.pem");
const CERTIFICATE: &str = include_str!("tls/server.pem");
const KEY: &str = include_str!("tls/server.key");

/// A receiver that takes one request over each connection, and its address.
fn receiver() -> (String, mpsc::Receiver<Heard>) {
    let certificate = CertificateDer::from_pem_slice(CERTIFICATE.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(KEY.as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let (sender, heard) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = BufReader::new(StreamOwned::new(connection, stream.unwrap()));
            // Nothing comes from whoever does not trust us.
            let Some(request) = read(&mut stream) else { continue };
            let answer = b"HTTP/1.1 200 So\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            stream.get_mut().write_all(answer).unwrap();
            stream.get_mut().conn.send_close_notify();
            let _ = stream.get_mut().flush();
            if sender.send(request).is_err() {
                return;
            }
        }
    });
    (url, heard)
}

#[test]
fn an_authority_of_ones_own_is_trusted_where_it_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, token) = (folder.path().join("authority.pem"), folder.path().join("token"));
    std::fs::write(&authority, AUTHORITY).unwrap();
    std::fs::write(&token, "s3cret\n").unwrap();
    let (url, heard) = receiver();
    let settings = Settings { certificates: Some(authority), token_file: Some(token), ..otlp(url) };
    let push = start(&settings);
    offer(&push, profiles::plain(1, 1000));
    until("it arrives", || push.counts().sent == 1);
    let request = heard.recv_timeout(Duration::from_secs(20)).unwrap();
    assert_eq!(request.header("authorization"), Some("Bearer s3cret"));
    assert_eq!(request.line, "POST /v1development/profiles HTTP/1.1");
}

#[test]
fn a_stranger_gets_nothing() {
    let (url, heard) = receiver();
    let push = start(&otlp(url));
    offer(&push, profiles::plain(1, 1000));
    until("it is refused", || push.counts().retried > 0);
    let error = push.counts().last_error.unwrap();
    assert!(error.contains("certificate"), "{error}");
    assert!(heard.try_recv().is_err(), "not even the head of a request");
}
