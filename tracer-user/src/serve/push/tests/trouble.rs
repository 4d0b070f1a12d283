//! Receivers that are away, busy, slow, broken or odd: what can arrive does, what cannot is counted, and nothing grows.

use std::{fs, net::TcpListener};

use super::*;
use crate::profile::{Process, ProcessIndex, Sample};

const LOCAL: &str = "127.0.0.1:0";

#[test]
fn a_receiver_that_comes_back_gets_what_waited() {
    let address = TcpListener::bind(LOCAL).unwrap().local_addr().unwrap();
    let push = start(&otlp(format!("http://{address}")));
    for number in 0..5 {
        offer(&push, profiles::plain(number, 1000));
    }
    until("it is tried again", || push.counts().retried >= 3);
    let counts = push.counts();
    assert!(counts.last_error.unwrap().starts_with(&format!("http://{address}/v1development/profiles: ")));
    assert_eq!((counts.waiting, counts.sent), (5, 0));
    let server = Server::at(address, accept);
    until("all arrive", || push.counts().sent == 5);
    assert_eq!(server.heard().len(), 5);
    assert_eq!(push.counts().last_error, None);
    assert_accounted(&push.counts(), 5);
}

#[test]
fn a_busy_receiver_is_left_alone_for_as_long_as_it_asks() {
    let server = Server::start(|number| match number {
        0 => Act::Answer(429, "Retry-After: 1\r\n", b"slow down".to_vec()),
        _ => Act::Answer(202, "", Vec::new()),
    });
    let push = start(&otlp(server.url()));
    offer(&push, profiles::plain(7, 1000));
    until("it arrives", || push.counts().sent == 1);
    let heard = server.heard();
    assert!(heard[1].at - heard[0].at >= Duration::from_secs(1), "its own waits are a tenth of that at most");
    assert_eq!(heard[0].body, heard[1].body, "the same bytes, the same ids");
    assert_eq!(push.counts(), Counts { sent: 1, retried: 1, ..Counts::default() });
}

#[test]
fn a_receiver_that_never_answers_is_waited_for_no_longer_than_is_said() {
    let server = Server::start(|number| if number == 0 { Act::Hang } else { accept(number) });
    let push = start(&Settings { request_timeout: Some(Duration::from_millis(300)), ..otlp(server.url()) });
    let begun = Instant::now();
    offer(&push, profiles::plain(7, 1000));
    until("it arrives", || push.counts().sent == 1);
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_eq!(push.counts().retried, 1);
}

#[test]
fn a_receiver_that_is_broken_for_ever_costs_a_bounded_queue() {
    let server = Server::start(|_| Act::Answer(500, "", Vec::new()));
    let room = Room { number: 3, ..Room::default() };
    let push = start(&Settings { room, ..otlp(server.url()) });
    for number in 0..40 {
        offer(&push, profiles::plain(number, 1000));
        assert!(push.counts().waiting <= 3);
    }
    assert_accounted(&push.counts(), 40);
    assert!(push.counts().dropped_full >= 36);
    until("what it fails at is given up", || push.counts().waiting == 0);
    let counts = push.counts();
    assert_accounted(&counts, 40);
    assert_eq!((counts.sent, counts.failed > 0), (0, true), "{counts:?}");
}

#[test]
fn a_queue_is_bounded_by_bytes() {
    let address = TcpListener::bind(LOCAL).unwrap().local_addr().unwrap();
    let one = weight(&profiles::plain(1, 1000));
    let room = Room { number: 100, bytes: 2 * one + one / 2 };
    let push = start(&Settings { room, ..otlp(format!("http://{address}")) });
    for _ in 0..10 {
        offer(&push, profiles::plain(1, 1000));
    }
    let counts = push.counts();
    assert_eq!((counts.waiting, counts.dropped_full), (2, 8));
}

#[test]
fn a_connection_that_breaks_is_made_again() {
    let server = Server::start(|number| match number {
        0 => Act::Close,
        1 => Act::CloseInHead,
        2 => Act::CloseInBody,
        _ => accept(number),
    });
    let push = start(&otlp(server.url()));
    offer(&push, profiles::plain(1, 1000));
    until("the first arrives", || push.counts().sent == 1);
    assert_eq!(server.heard().len(), 3, "a status was read, whatever became of the rest");
    offer(&push, profiles::plain(2, 1000));
    until("the second arrives", || push.counts().sent == 2);
    assert_eq!(push.counts().retried, 2);
}

#[test]
fn what_is_refused_is_not_sent_again() {
    for status in [400, 401, 404, 413] {
        let server = Server::start(move |number| match number {
            0 => Act::Answer(status, "", b"no".to_vec()),
            _ => accept(number),
        });
        let push = start(&otlp(server.url()));
        offer(&push, profiles::plain(1, 1000));
        offer(&push, profiles::plain(2, 1000));
        until("both are settled", || push.counts().waiting == 0);
        let counts = push.counts();
        assert_eq!((counts.sent, counts.dropped_refused, counts.retried), (1, 1, 0), "{status}");
        assert_eq!(server.heard().len(), 2);
    }
}

#[test]
fn a_redirect_is_not_followed() {
    let elsewhere = Server::start(accept);
    let header: &'static str = format!("Location: {}/x\r\n", elsewhere.url()).leak();
    let server = Server::start(move |_| Act::Answer(307, header, Vec::new()));
    let push = start(&otlp(server.url()));
    offer(&push, profiles::plain(1, 1000));
    until("it is refused", || push.counts().dropped_refused == 1);
    assert!(elsewhere.heard().is_empty());
}

#[test]
fn who_is_away_holds_up_nobody_else() {
    let address = TcpListener::bind(LOCAL).unwrap().local_addr().unwrap();
    let server = Server::start(accept);
    let push = start(&Settings { pyroscope: Some(server.url()), ..otlp(format!("http://{address}")) });
    for number in 0..3 {
        offer(&push, profiles::plain(number, 1000));
    }
    until("one gets all", || push.counts().sent == 3);
    let by_place = push.counts_by_place();
    assert_eq!(by_place[1], ("pyroscope", Counts { sent: 3, ..Counts::default() }));
    assert_eq!((by_place[0].0, by_place[0].1.waiting), ("otlp", 3));
    assert_accounted(&push.counts(), 6);
}

#[test]
fn only_what_is_missing_is_sent_again() {
    let server =
        Server::start(|number| if number == 1 { Act::Answer(503, "", Vec::new()) } else { accept(number) });
    let mut profile = profiles::plain(1, 1000);
    // Without a given name each process is a service of its own.
    let command = "python3 -m other".to_owned();
    profile.processes.push(Process { pid: 2, command, ..profile.processes[0].clone() });
    profile.samples.push(Sample { process: ProcessIndex(1), ..profile.samples[0].clone() });
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings { pyroscope: Some(server.url()), ..settings() };
    let push = Push::start(&settings, Labeller::gather(folder.path(), [], &[])).unwrap();
    offer(&push, profile);
    until("it arrives", || push.counts().sent == 1);
    let names: Vec<String> =
        server.heard().iter().map(|heard| heard.line.split(['=', '%']).nth(1).unwrap().to_owned()).collect();
    assert_eq!(names, ["main1.py", "other", "other"]);
    assert_eq!(push.counts().retried, 1);
}

#[test]
fn a_token_goes_into_the_header_and_nowhere_else() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    fs::write(&token, "s3cret-one\n").unwrap();
    let server =
        Server::start(
            |number| if number == 0 { Act::Answer(401, "", b"who?".to_vec()) } else { accept(number) },
        );
    let push = start(&Settings { token_file: Some(token.clone()), ..otlp(server.url()) });
    offer(&push, profiles::plain(1, 1000));
    until("it is refused", || push.counts().dropped_refused == 1);
    let printed = format!("{push:?} {:?}", push.counts());
    assert!(!printed.contains("s3cret"), "{printed}");
    fs::write(&token, "s3cret-two\n").unwrap();
    offer(&push, profiles::plain(1, 1000));
    until("it arrives", || push.counts().sent == 1);
    let tokens: Vec<String> =
        server.heard().iter().map(|heard| heard.header("authorization").unwrap().to_owned()).collect();
    assert_eq!(tokens, ["Bearer s3cret-one", "Bearer s3cret-two"], "it is read each time");
}

#[test]
fn what_cannot_work_is_said_at_once() {
    let said = |settings: &Settings| {
        let folder = tempfile::tempdir().unwrap();
        Push::start(settings, Labeller::gather(folder.path(), [], &[])).unwrap_err().to_string()
    };
    let no_address = said(&otlp("collector:4318".to_owned()));
    assert_eq!(no_address, "`collector:4318` is no address: give one such as `http://127.0.0.1:4318`");
    let no_token =
        said(&Settings { token_file: Some("/no/such/token".into()), ..otlp("https://c".to_owned()) });
    assert_eq!(no_token, "failed to read the token file `/no/such/token`: check `--push-token-file`");
    let no_roots =
        said(&Settings { certificates: Some("/no/such/pem".into()), ..otlp("https://c".to_owned()) });
    assert_eq!(no_roots, "failed to read the certificates `/no/such/pem`: check `SSL_CERT_FILE`");
}

#[test]
fn the_end_sends_what_it_can_and_no_more() {
    let server = Server::start(accept);
    let push = start(&otlp(server.url()));
    for number in 0..4 {
        offer(&push, profiles::plain(number, 1000));
    }
    assert_eq!(push.finish(Duration::from_secs(10)).sent, 4);

    let hanging = Server::start(|_| Act::Hang);
    let push = start(&Settings { request_timeout: Some(Duration::from_secs(60)), ..otlp(hanging.url()) });
    offer(&push, profiles::plain(1, 1000));
    until("it is on its way", || hanging.heard().len() == 1);
    let begun = Instant::now();
    let counts = push.finish(Duration::from_millis(200));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!((counts.sent, counts.waiting), (0, 1));
}
