//! What receivers get: decoded by the types that OpenTelemetry publishes, and by a form reader and our own pprof reader for Pyroscope.

use std::io::Read;

use flate2::read::GzDecoder;
use opentelemetry_proto::tonic::collector::profiles::v1development::{
    ExportProfilesPartialSuccess, ExportProfilesServiceRequest, ExportProfilesServiceResponse,
};
use prost::Message;

use super::*;
use crate::profile::{Metric, pprof};

fn decode(body: &[u8]) -> ExportProfilesServiceRequest {
    let mut bytes = Vec::new();
    GzDecoder::new(body).read_to_end(&mut bytes).unwrap();
    ExportProfilesServiceRequest::decode(&bytes[..]).unwrap()
}

#[test]
fn a_collector_gets_the_minute() {
    let server = Server::start(accept);
    let push = start(&otlp(server.url()));
    offer(&push, profiles::plain(7, 1000));
    until("it arrives", || push.counts().sent == 1);
    let heard = server.heard().remove(0);
    assert_eq!(heard.line, "POST /v1development/profiles HTTP/1.1");
    assert_eq!(heard.header("content-type"), Some("application/x-protobuf"));
    assert_eq!(heard.header("content-encoding"), Some("gzip"));
    assert!(heard.header("user-agent").unwrap().starts_with("alloctrace/"));
    let request = decode(&heard.body);
    let strings = request.dictionary.unwrap().string_table;
    let resource = request.resource_profiles[0].resource.as_ref().unwrap();
    let keys: Vec<&str> = resource.attributes.iter().map(|attribute| attribute.key.as_str()).collect();
    assert_eq!(
        keys,
        ["process.pid", "process.runtime.name", "process.runtime.version", "service.name", "team"]
    );
    let profiles = &request.resource_profiles[0].scope_profiles[0].profiles;
    let told: Vec<(&str, i64)> = profiles
        .iter()
        .map(|profile| {
            let name = &strings[usize::try_from(profile.sample_type.unwrap().type_strindex).unwrap()];
            (name.as_str(), profile.samples.iter().map(|sample| sample.values[0]).sum())
        })
        .collect();
    assert_eq!(
        told,
        [("inuse_space", 500), ("inuse_objects", 1), ("alloc_space", 1000), ("alloc_objects", 2)]
    );
}

#[test]
fn what_a_collector_does_not_take_is_counted() {
    let partial =
        ExportProfilesPartialSuccess { rejected_profiles: 2, error_message: "too\nmany".to_owned() };
    let answer = ExportProfilesServiceResponse { partial_success: Some(partial) }.encode_to_vec();
    let server = Server::start(move |_| Act::Answer(200, "", answer.clone()));
    let push = start(&otlp(server.url()));
    offer(&push, profiles::plain(7, 1000));
    until("it is refused", || push.counts().dropped_refused == 1);
    let error = push.counts().last_error.unwrap();
    assert!(error.ends_with("/v1development/profiles: 2 profiles were not taken: too"), "{error}");
    assert_accounted(&push.counts(), 1);
}

/// The files of a form: names and contents.
fn files(content_type: &str, body: &[u8]) -> Vec<(String, Vec<u8>)> {
    let boundary = content_type.strip_prefix("multipart/form-data; boundary=").unwrap();
    let find = |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).position(|window| window == what);
    let (mut files, mut rest) = (Vec::new(), body);
    loop {
        rest = rest.strip_prefix(format!("--{boundary}").as_bytes()).expect("a boundary");
        if rest == b"--\r\n" {
            return files;
        }
        let head_end = find(rest, b"\r\n\r\n").unwrap();
        let head = std::str::from_utf8(&rest[..head_end]).unwrap();
        let name = head.split_once("name=\"").unwrap().1.split('"').next().unwrap().to_owned();
        assert!(head.contains("filename=\""), "a field without a file name is no file to Pyroscope");
        let content = &rest[head_end + 4..];
        let end = find(content, format!("\r\n--{boundary}").as_bytes()).unwrap();
        files.push((name, content[..end].to_vec()));
        rest = &content[end + 2..];
    }
}

#[test]
fn pyroscope_gets_a_form_for_each_group_of_processes() {
    let server = Server::start(accept);
    let push = start(&Settings { pyroscope: Some(server.url()), ..settings() });
    let profile = profiles::plain(7, 1000);
    offer(&push, profile.clone());
    until("it arrives", || push.counts().sent == 1);
    let heard = server.heard().remove(0);
    let expected = "POST /ingest?name=shop%7Bteam%3Dblue%7D&from=1700000000&until=1700000060&format=pprof&spyName=alloctrace HTTP/1.1";
    assert_eq!(heard.line, expected);
    let files = files(heard.header("content-type").unwrap(), &heard.body);
    let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["profile", "sample_type_config"]);
    assert_eq!(pprof::decode(&files[0].1).unwrap(), profile);
    let types: serde_json::Value = serde_json::from_slice(&files[1].1).unwrap();
    let of =
        |name: &str| (types[name]["units"].as_str().unwrap(), types[name]["aggregation"].as_str().unwrap());
    assert_eq!(of("alloc_space"), ("bytes", "sum"));
    assert_eq!(of("inuse_objects"), ("objects", "average"));
    assert_eq!(types.as_object().unwrap().len(), 4);
}

#[test]
fn a_metric_that_is_not_known_is_not_sent_as_zero() {
    let servers = [Server::start(accept), Server::start(accept)];
    let [collector, pyroscope] = servers.each_ref().map(Server::url);
    let push = start(&Settings { otlp: Some(collector), pyroscope: Some(pyroscope), ..settings() });
    let mut profile = profiles::plain(7, 1000);
    profile.recording = profiles::recording(false);
    assert!(!profile.knows(Metric::Live));
    offer(&push, profile);
    until("it arrives", || push.counts().sent == 2);
    let strings = decode(&servers[0].heard()[0].body).dictionary.unwrap().string_table;
    assert!(strings.contains(&"alloc_space".to_owned()) && !strings.contains(&"inuse_space".to_owned()));
    let heard = servers[1].heard().remove(0);
    let types = files(heard.header("content-type").unwrap(), &heard.body).remove(1).1;
    assert!(!String::from_utf8(types).unwrap().contains("inuse"));
}

#[test]
fn both_recordings_are_told_apart() {
    let servers = [Server::start(accept), Server::start(accept)];
    let [collector, pyroscope] = servers.each_ref().map(Server::url);
    let push = start(&Settings { otlp: Some(collector), pyroscope: Some(pyroscope), ..settings() });
    push.offer(Kind::Resident, span(), Arc::new(profiles::plain(7, 4096)));
    until("it arrives", || push.counts().sent == 2);
    let strings = decode(&servers[0].heard()[0].body).dictionary.unwrap().string_table;
    assert!(strings.contains(&"resident_inuse_space".to_owned()), "{strings:?}");
    assert!(servers[1].heard()[0].line.contains("name=shop.resident%7B"), "{}", servers[1].heard()[0].line);
}

#[test]
fn an_empty_minute_is_no_request() {
    let server = Server::start(accept);
    let push = start(&otlp(server.url()));
    let mut profile = profiles::plain(7, 1000);
    profile.samples.clear();
    offer(&push, profile);
    assert_eq!(push.finish(Duration::from_secs(5)), Counts::default());
    assert!(server.heard().is_empty());
}
