//! The server: its replies, and what it survives.

mod common;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{FakeDaemon, House};
use control::client::{Client, ClientError};
use control::server::{Server, ServerConfig};
use proptest::prelude::*;

#[test]
fn a_person_with_curl_gets_along() {
    let house = House::new();
    let (status, body) = house.request("GET", "/v1/relays", "");
    assert_eq!(status, 200);
    assert!(body.contains("\n    \"id\": 0,") && body.ends_with("]\n"), "{body}");

    // Body or query, PUT or POST, whatever content type `curl -d` has put there.
    assert_eq!(house.request("PUT", "/v1/relays/1/device", r#"{"pci_addr":"02:08.0"}"#).0, 200);
    assert_eq!(house.request("DELETE", "/v1/relays/1/device?pci_addr=0000:02:08.0", "").0, 200);
    assert_eq!(house.request("POST", "/v1/relays/1/device?device=tap:vm1", "").0, 200);
    assert_eq!(house.request("DELETE", "/v1/relays/1/device", r#"{"device":"tap:vm1"}"#).0, 200);
    assert_eq!(house.request("DELETE", "/v1/relays/1/device?conditional=true", "").0, 200);

    let (status, body) = house.request("GET", "/v1/version", "");
    assert!(status == 200 && body.contains("1.2.3"), "{body}");
    let (status, body) = house.request("GET", "/metrics", "");
    assert_eq!((status, body.as_str()), (200, "# TYPE relays gauge\nrelays 4\n# EOF\n"));
}

#[test]
fn every_mistake_is_a_problem_that_names_it() {
    let house = House::new();
    for (method, path, body, status, code, names) in [
        ("GET", "/v1/nothing", "", 404, "not_found", "/v1/nothing"),
        ("DELETE", "/v1/relays", "", 405, "method_not_allowed", "DELETE"),
        ("GET", "/v1/relays/99", "", 404, "relay_not_found", "99"),
        ("GET", "/v1/relays/-1", "", 400, "invalid_request", "'-1'"),
        ("PUT", "/v1/relays/1/device", "{}", 400, "invalid_request", "missing"),
        ("PUT", "/v1/relays/1/device", "", 400, "invalid_request", "missing"),
        ("PUT", "/v1/relays/1/device", "{\"dev\":\"null\"}", 400, "invalid_request", "`dev`"),
        ("PUT", "/v1/relays/1/device?dev=null", "", 400, "invalid_request", "`dev`"),
        ("PUT", "/v1/relays/1/device?device=null", "{}", 400, "invalid_request", "both"),
        ("PUT", "/v1/relays/1/device", "{\"device\":", 400, "invalid_request", "EOF"),
        ("PUT", "/v1/relays/1/device", "{\"device\":\"nul\"}", 400, "invalid_request", "'nul'"),
        ("PUT", "/v1/relays/0/device", "{\"device\":\"null\"}", 409, "relay_occupied", "relay 0"),
        ("GET", "/v1/statistics?relay=x", "", 400, "invalid_request", "relay=x"),
        ("PUT", "/v1/relays/1/device", "[\"null\"]", 400, "invalid_request", "JSON object"),
        ("PUT", "/v1/relays/1/device", "7", 400, "invalid_request", "JSON object"),
        ("PUT", "/v1/relays/1/device", "{\"device\":[]}", 400, "invalid_request", "a string"),
        ("PUT", "/v1/relays/1/device", "{\"device\":\"tap:a\\nb\"}", 400, "invalid_request", "control"),
        ("GET", "/v1/statistics?relay=77", "", 404, "relay_not_found", "relay 77"),
        ("GET", "/v1/statistics?relay=0,77&include_inactive=false", "", 404, "relay_not_found", "relay 77"),
        ("GET", "/v1/statistics?rely=1", "", 400, "invalid_request", "'rely'"),
    ] {
        let (got, reply) = house.request(method, path, body);
        let problem: serde_json::Value = serde_json::from_str(&reply).unwrap();
        assert_eq!((got, problem["code"].as_str()), (status, Some(code)), "{method} {path}: {reply}");
        assert_eq!(problem["status"].as_u64(), Some(u64::from(status)));
        assert!(problem["detail"].as_str().unwrap().contains(names), "{method} {path}: {reply}");
        assert!(!reply.contains("DeviceRequest"), "{reply}");
    }
    let reply =
        house.raw(b"DELETE /v1/relays HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").to_lowercase();
    assert!(reply.contains("application/problem+json"), "{reply}");
    assert!(reply.contains("allow: get"), "{reply}");
    let (status, reply) = house.request("PUT", "/v1/relays/1/device", &" ".repeat(100_000));
    assert!(status == 413 && reply.contains("65536 bytes"), "{reply}");
    let long = format!(r#"{{"{}":"null"}}"#, "x".repeat(50_000));
    let (status, reply) = house.request("PUT", "/v1/relays/1/device", &long);
    assert!(status == 400 && reply.len() < 1000, "{reply}");
}

#[test]
fn the_description_lists_every_route() {
    let house = House::new();
    let (status, body) = house.request("GET", "/openapi.json", "");
    assert_eq!(status, 200);
    let description: serde_json::Value = serde_json::from_str(&body).unwrap();
    let mut routes = BTreeSet::new();
    assert_eq!(description.pointer("/components/schemas/Relay/properties/id/format").unwrap(), "uint32");
    for (path, methods) in description["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            routes.insert(format!("{method} {path}"));
            for (status, reply) in methods[method]["responses"].as_object().unwrap() {
                assert!(!reply["description"].as_str().unwrap().is_empty(), "{method} {path} {status}");
            }
        }
    }
    let expected = [
        "delete /v1/relays/{id}/device",
        "get /metrics",
        "get /openapi.json",
        "get /v1/relays",
        "get /v1/relays/{id}",
        "get /v1/statistics",
        "get /v1/version",
        "get /v1/workers",
        "post /v1/relays/{id}/device",
        "put /v1/relays/{id}/device",
    ];
    assert_eq!(routes, expected.map(str::to_owned).into());
    for route in expected {
        let (method, path) = route.split_once(' ').unwrap();
        let (status, reply) = house.request(&method.to_uppercase(), &path.replace("{id}", "1"), "");
        assert!(![0, 404, 405].contains(&status), "{route}: {status} {reply}");
    }
    // What the schemas refer to is there.
    let schemas = description["components"]["schemas"].as_object().unwrap();
    for reference in body.split("#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(schemas.contains_key(name), "{name}");
    }
}

#[test]
fn metrics_alone_are_served_on_the_network() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = ServerConfig::new(directory.path().join("s"));
    config.metrics_listen = Some("127.0.0.1:0".parse().unwrap());
    let server = Server::bind(&config).unwrap();
    let address = server.metrics_address().unwrap();
    let _server = server.spawn(Arc::new(FakeDaemon::new())).unwrap();
    let get = |path: &str| {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        reply
    };
    assert!(get("/metrics").contains("relays 4"));
    assert!(get("/v1/relays").starts_with("HTTP/1.1 404"));
}

#[test]
fn requests_do_not_disturb_each_others_rates() {
    let house = House::of(FakeDaemon { growth: 10, ..FakeDaemon::new() }, |_| {});
    let client = Client::new(&house.socket);
    let slow = std::thread::spawn(move || client.statistics(&[0], true, Duration::from_millis(500)).unwrap());
    let client = Client::new(&house.socket);
    for _ in 0..20 {
        let statistics = client.statistics(&[0], true, Duration::from_millis(5)).unwrap();
        assert!(statistics[0].vf_to_vm.rates.unwrap().rx_packets > 0.0);
    }
    let rate = slow.join().unwrap()[0].vf_to_vm.rates.unwrap().rx_packets;
    // It saw what the 40 other looks added between its own two.
    assert!(rate > 100.0, "{rate}");
}

#[test]
fn slow_work_holds_up_nobody_else() {
    let house = House::of(FakeDaemon { slowness: Duration::from_secs(1), ..FakeDaemon::new() }, |_| {});
    let client = Client::new(&house.socket);
    let slow = std::thread::spawn(move || {
        client.add_device(1, &serde_json::from_str(r#"{"device":"null"}"#).unwrap()).unwrap()
    });
    let client = Client::new(&house.socket);
    let mut answers = 0;
    while !slow.is_finished() {
        client.version().unwrap();
        answers += 1;
    }
    assert!(answers > 1, "{answers}");
    assert_eq!(slow.join().unwrap().device.unwrap().name, "null");
}

#[test]
fn garbage_and_half_requests_do_no_harm() {
    let house = House::of(FakeDaemon::new(), |config| config.limits.request = Duration::from_millis(300));
    for garbage in [
        &b""[..],
        b"\0\0\0\0",
        b"GET",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\r\n\r\n\r\n\r\n",
        b"PUT /v1/relays/1/device HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"PUT /v1/relays/1/device HTTP/1.1\r\nContent-Length: 10\r\n\r\n{",
        b"PUT /v1/relays/1/device HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /%ff%fe%00 HTTP/1.1\r\nHost: x\r\n\r\n",
    ] {
        house.raw(garbage);
    }
    house.raw(format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20)).as_bytes());

    // Clients that stop in the middle of headers and of a body are let go in time.
    for half in ["GET /v1/rel", "PUT /v1/relays/1/device HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"] {
        let mut stream = UnixStream::connect(&house.socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(half.as_bytes()).unwrap();
        let start = Instant::now();
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).unwrap();
        assert!(start.elapsed() < Duration::from_secs(8), "{half}");
    }
    assert_eq!(house.request("GET", "/v1/relays/1", "").0, 200);
}

#[test]
fn a_thousand_connections_do_no_harm() {
    let house = House::of(FakeDaemon::new(), |config| config.limits.request = Duration::from_secs(2));
    // Each stays open and says nothing.
    let mut held: Vec<_> = (0..1000).filter_map(|_| UnixStream::connect(&house.socket).ok()).collect();
    // One of those beyond the limit asks, and hears why it gets nothing.
    let beyond = &mut held[300];
    beyond.write_all(b"GET /v1/version HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut reply = String::new();
    beyond.read_to_string(&mut reply).unwrap();
    assert!(reply.starts_with("HTTP/1.1 503") && reply.contains("\"unavailable\""), "{reply}");
    // The tool hears the same, and asks again until the idle ones have been let go.
    assert_eq!(Client::new(&house.socket).version().unwrap().version, "1.2.3");
}

#[test]
fn stopping_lets_requests_finish_and_removes_the_socket() {
    let mut house =
        House::of(FakeDaemon { slowness: Duration::from_millis(500), ..FakeDaemon::new() }, |_| {});
    let client = Client::new(&house.socket);
    let slow = std::thread::spawn(move || {
        client.add_device(1, &serde_json::from_str(r#"{"device":"null"}"#).unwrap())
    });
    std::thread::sleep(Duration::from_millis(200));
    house.server.take().unwrap().stop().unwrap();
    assert_eq!(slow.join().unwrap().unwrap().device.unwrap().name, "null");
    assert!(!house.socket.exists());
    let error = Client::new(&house.socket).version().unwrap_err();
    assert!(matches!(error, ClientError::NotRunning { .. }), "{error}");
}

#[test]
fn strangers_on_the_socket_are_told_apart_from_a_daemon_that_is_busy() {
    let directory = tempfile::tempdir().unwrap();
    for (name, word, says) in [
        ("closes", &b""[..], "closed the connection without an answer"),
        ("talks", b"hello\r\n\r\n", "not HTTP"),
    ] {
        let path = directory.path().join(name);
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = stream.read(&mut [0; 8]);
                let _ = stream.write_all(word);
            }
        });
        let start = Instant::now();
        let error = Client::new(&path).version().unwrap_err().to_string();
        assert!(error.contains(says) && error.contains(name) && !error.contains("too many"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(4), "it asked again");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn random_bytes_do_no_harm(garbage in proptest::collection::vec(any::<u8>(), 0..2000)) {
        // One server for all cases.
        static HOUSE: std::sync::LazyLock<House> = std::sync::LazyLock::new(House::new);
        HOUSE.raw(&garbage);
        let mut request = b"PUT /v1/relays/1/device HTTP/1.1\r\nContent-Length: 10\r\n\r\n".to_vec();
        request.extend(&garbage);
        HOUSE.raw(&request);
        prop_assert_eq!(HOUSE.request("GET", "/v1/version", "").0, 200);
    }
}
