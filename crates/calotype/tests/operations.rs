//! What is planned and not served, by requests to a real server. `/api/operations` names every route of both tables, so these
//! tests follow the tables. The worker is `fake_worker`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "the other tests use the rest")]
mod support;

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use support::Server;

/// Every operation of the server, each with its domain.
fn operations(server: &Server) -> Vec<(Value, Value)> {
    let domains = server.get("/api/operations");
    let each = domains.as_array().unwrap().iter().flat_map(|domain| {
        let operations = domain["operations"].as_array().unwrap();
        operations
            .iter()
            .map(move |operation| (domain["domain"].clone(), operation.clone()))
    });
    each.collect()
}

/// A path with a name that nothing has for each part in braces.
fn filled(path: &Value) -> String {
    let parts = path.as_str().unwrap().split('/');
    let parts = parts.map(|part| if part.starts_with('{') { "nobody" } else { part });
    parts.collect::<Vec<_>>().join("/")
}

/// Status, `Allow` header and error of the answer to a request.
fn asked(server: &Server, method: &str, path: &str, headers: &[(&str, &str)]) -> (u16, String, Value) {
    let mut response = match method {
        "POST" | "PUT" | "PATCH" => {
            let mut headers = headers.to_vec();
            headers.push(("Content-Type", "application/json"));
            server.ask(method, path, &headers, "{}")
        }
        _ => server.ask(method, path, headers, ()),
    };
    let allow = response.headers().get("allow");
    let allow = allow.map_or(String::new(), |allow| allow.to_str().unwrap().to_owned());
    let status = response.status().as_u16();
    // Only errors are read: a stream of events has no end.
    let error = match status {
        400.. if method != "HEAD" => response.body_mut().read_json::<Value>().unwrap()["error"].take(),
        _ => Value::Null,
    };
    (status, allow, error)
}

#[test]
fn a_route_that_is_planned_answers_501_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::with_fake_worker(dir.path(), 0, &[]);
    let planned = operations(&server)
        .into_iter()
        .filter(|(_, operation)| operation["served"] == false);
    let mut count = 0;
    for (domain, operation) in planned {
        let method = operation["method"].as_str().unwrap();
        let path = filled(&operation["path"]);
        let (status, _, error) = asked(&server, method, &path, &[]);
        let shown = format!("{method} {path} {error}");
        assert_eq!(
            (status, &error["code"]),
            (501, &json!("NOT_SUPPORTED")),
            "{shown}"
        );
        assert_eq!((&error["domain"], &error["retryable"]), (&domain, &json!(false)));
        let message = error["message"].as_str().unwrap();
        for words in [&operation["summary"], &operation["reason"]] {
            assert!(message.contains(words.as_str().unwrap()), "{shown}");
        }
        match operation["instead"].as_str() {
            Some(instead) => assert_eq!(error["advice"], instead, "{shown}"),
            None => assert!(error["advice"].as_str().unwrap().contains("/api/operations")),
        }
        assert!(error["request_id"].is_string(), "{shown}");
        if method == "GET" {
            assert_eq!(asked(&server, "HEAD", &path, &[]).0, 501, "{shown}");
        }
        count += 1;
    }
    assert_ne!(count, 0);
}

#[test]
fn a_route_that_is_served_never_answers_501() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::with_fake_worker(dir.path(), 0, &[]);
    let served = operations(&server)
        .into_iter()
        .filter(|(_, operation)| operation["served"] == true);
    let mut count = 0;
    for (_, operation) in served {
        let method = operation["method"].as_str().unwrap();
        let path = filled(&operation["path"]);
        let (status, _, error) = asked(&server, method, &path, &[]);
        assert!(![405, 501].contains(&status), "{method} {path} {error}");
        count += 1;
    }
    assert!(count > 20, "{count}");
}

#[test]
fn a_method_that_is_not_planned_either_is_refused_as_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::with_fake_worker(dir.path(), 0, &[]);
    for (method, path, allowed) in [
        ("POST", "/api/queue", "GET,HEAD"),
        ("OPTIONS", "/api/queue", "GET,HEAD"),
        ("GET", "/api/queue/pause", "POST"),
        ("GET", "/api/jobs/nobody/retry", "POST"),
        ("PATCH", "/api/devices/sets/both", "GET,HEAD,PUT,DELETE"),
        // Served and planned methods of one path: the header has those that work.
        ("PUT", "/api/models/nobody", "GET,HEAD"),
        ("PUT", "/api/models/cache", "GET,HEAD"),
        // Nothing is planned for these.
        ("PUT", "/api/devices", "GET,HEAD"),
        ("OPTIONS", "/api/jobs", "GET,HEAD,POST"),
    ] {
        let (status, allow, error) = asked(&server, method, path, &[]);
        assert_eq!(
            (status, &error["code"]),
            (405, &json!("METHOD_NOT_ALLOWED")),
            "{method} {path}"
        );
        let sorted = |methods: &str| {
            let mut methods: Vec<String> = methods.split(',').map(str::to_owned).collect();
            methods.sort();
            methods
        };
        assert_eq!(sorted(&allow), sorted(allowed), "{method} {path}");
    }
    for path in ["/api/queue/", "/api/queue/nothing", "/api/workflow", "/queue"] {
        assert_eq!(asked(&server, "GET", path, &[]).0, 404, "{path}");
    }
}

#[test]
fn a_model_with_the_name_of_a_planned_route_is_still_shown() {
    let dir = tempfile::tempdir().unwrap();
    let added = dir.path().join("models");
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/calotype-tiny/vae");
    for name in ["cache", "pull"] {
        let vae = added.join("vaes").join(name);
        fs::create_dir_all(&vae).unwrap();
        for file in ["config.json", "diffusion_pytorch_model.safetensors"] {
            fs::copy(own.join(file), vae.join(file)).unwrap();
        }
    }
    let data = dir.path().join("data");
    let server = Server::with_fake_worker(&data, 0, &["--models", added.to_str().unwrap()]);
    for (name, planned) in [("cache", "DELETE"), ("pull", "POST")] {
        let path = format!("/api/models/{name}");
        assert_eq!(server.get(&path)["id"], name);
        assert_eq!(asked(&server, planned, &path, &[]).0, 501, "{planned} {path}");
    }
}

#[test]
fn a_planned_route_asks_for_the_key_and_keeps_the_request_id() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::with_fake_worker(dir.path(), 0, &["--api-key", "secret"]);
    for (key, expected) in [("wrong", 401), ("secret", 501)] {
        let headers = [("X-API-Key", key), ("X-Request-Id", "mine-1")];
        for (method, path) in [("POST", "/api/queue/pause"), ("GET", "/api/models/cache")] {
            let (status, _, error) = asked(&server, method, path, &headers);
            assert_eq!(status, expected, "{method} {path} {key}");
            assert_eq!(error["request_id"], "mine-1", "{method} {path} {key}");
        }
    }
}

#[test]
fn a_query_does_not_keep_the_reason_from_its_client() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::with_fake_worker(dir.path(), 0, &[]);
    for (method, path) in [
        ("GET", "/api/devices/cpu0/plan?goal=speed"),
        ("POST", "/api/models/pull?from=hub"),
        ("PATCH", "/api/models/calotype-tiny?dry_run=true"),
    ] {
        assert_eq!(asked(&server, method, path, &[]).0, 501, "{method} {path}");
    }
}

#[test]
fn a_large_body_does_not_keep_the_reason_from_its_client() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::with_fake_worker(dir.path(), 0, &[]);
    let image = json!({ "image": "A".repeat(16 << 20) }).to_string();
    let (status, answer) = server.post("/api/postprocessing/upscale", &[], &image);
    assert_eq!(status, 501, "{answer}");
    assert_eq!(answer["error"]["domain"], "postprocessing");
    assert!(answer["error"]["advice"].as_str().unwrap().contains("hires"));
}
