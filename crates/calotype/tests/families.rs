//! Every family, ControlNet, preprocessor and part through the whole program, on small models with random weights that
//! `python/tests/folders.py` writes. Whether the numbers are right is tested in `python/tests` against diffusers; here,
//! that what the catalogue finds is loaded, takes part, and gives the same picture again. Runs where `CALOTYPE_PYTHON`
//! names a Python with the worker's packages, as `cargo xtask test` sets it; says aloud that it was skipped elsewhere.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "the other tests use the rest")]
mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use calotype_imaging::{Format, Rgb, encode};
use serde_json::{Value, json};
use support::{Server, python};

/// A server whose models are the small ones; `None` where there is no Python.
fn with_small_models(dir: &Path) -> Option<Server> {
    let models = dir.join("models");
    let written = Command::new(python()?)
        .args(["-m", "tests.folders"])
        .arg(&models)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../../python"))
        .status();
    assert!(written.unwrap().success());
    let models = models.display().to_string();
    Some(Server::start_with(
        &dir.join("data"),
        &["--runtime", "python", "--models", &models],
    ))
}

/// An object with more fields.
fn with(mut object: Value, more: &Value) -> Value {
    for (field, value) in more.as_object().unwrap() {
        object[field] = value.clone();
    }
    object
}

/// The picture of a small request with more fields.
fn drawn(server: &Server, more: &Value) -> Vec<u8> {
    let small =
        json!({ "prompt": "a red cat", "width": 64, "height": 64, "steps": 3, "guidance": 3.0, "seed": 7 });
    let request = with(small, more);
    let picture = server.fetched(&server.submit(&request));
    let size = |field: &str| more["hires"][field].as_u64().unwrap_or(64);
    let drawn = (u64::from(picture.width), u64::from(picture.height));
    assert_eq!(drawn, (size("width"), size("height")), "{more}");
    assert!(
        picture.pixels.iter().any(|pixel| *pixel != picture.pixels[0]),
        "{more}: one colour"
    );
    picture.pixels
}

/// A picture with edges, as a request takes it.
fn a_disc() -> String {
    let pixel = |at: i32| {
        let (x, y) = (at % 64 - 32, at / 64 - 32);
        if x * x + y * y < 400 {
            [250, 180, 20]
        } else {
            [10, 40, 90]
        }
    };
    let disc = Rgb::new(64, 64, (0..64 * 64).flat_map(pixel).collect()).unwrap();
    base64::engine::general_purpose::STANDARD.encode(encode(&disc, Format::Png, 0, None).unwrap())
}

#[test]
fn every_family_draws_with_its_controlnets_refiner_and_other_parts() {
    let dir = tempfile::tempdir().unwrap();
    let Some(server) = with_small_models(dir.path()) else {
        return;
    };
    let disc = a_disc();
    let unit = |model: &str, more: Value| json!([with(json!({ "model": model, "image": disc }), &more)]);
    let mut plain = BTreeMap::new();
    for model in ["sd", "sdxl", "sd3", "flux"] {
        let picture = drawn(&server, &json!({ "model": model }));
        assert_eq!(picture, drawn(&server, &json!({ "model": model })), "{model}");
        plain.insert(model, picture);
    }
    // Each takes part: the picture is another.
    let mut seen: Vec<(Value, Vec<u8>)> = Vec::new();
    for request in [
        json!({ "model": "sd", "control": unit("sd-lines", json!({ "preprocessor": "canny" })) }),
        json!({ "model": "sd", "control": unit("sd-lines", json!({ "preprocessor": "scribble" })) }),
        json!({ "model": "sd", "control": unit("sd-lines", json!({ "preprocessor": "depth" })) }),
        json!({ "model": "sd", "control": unit("sd-lines", json!({ "preprocessor": "normal" })) }),
        json!({ "model": "sd", "control": unit("sd-lines", json!({ "preprocessor": "softedge", "weight": 0.6 })) }),
        json!({ "model": "sd", "control": unit("sd-lines", json!({ "preprocessor": "pose", "weight": 0.4 })) }),
        json!({ "model": "sd", "vae": "other-vae" }),
        json!({ "model": "sd", "text_encoders": ["other-clip"] }),
        json!({ "model": "sd", "hires": { "width": 96, "height": 128 } }),
        json!({ "model": "sd", "init_image": disc, "strength": 0.7 }),
        json!({ "model": "sdxl", "control": unit("sdxl-lines", json!({ "mode": "control" })) }),
        json!({ "model": "sdxl", "control": unit("sdxl-lines", json!({ "end": 0.5 })) }),
        json!({ "model": "sdxl", "refiner": { "model": "sdxl-refiner", "switch_at": 0.5 } }),
        json!({ "model": "sd3", "init_image": disc, "strength": 0.7 }),
        json!({ "model": "flux", "text_encoders": ["other-clip"] }),
    ] {
        let picture = drawn(&server, &request);
        let model = request["model"].as_str().unwrap();
        assert_ne!(picture, plain[model], "{request}");
        for (other, like) in &seen {
            assert_ne!(picture, *like, "{request} and {other}");
        }
        seen.push((request, picture));
    }
    // A unit of weight 0 changes nothing, and the model is as it was.
    let idle = unit("sd-lines", json!({ "preprocessor": "canny", "weight": 0.0 }));
    assert_eq!(
        drawn(&server, &json!({ "model": "sd", "control": idle })),
        plain["sd"]
    );
    // What does not fit together is refused before it is queued, and its field is named.
    for (request, field) in [
        (
            json!({ "model": "sdxl", "control": unit("sd-lines", json!({})) }),
            "control[0].model",
        ),
        (
            json!({ "model": "sd3", "control": unit("sd-lines", json!({})) }),
            "control[0].model",
        ),
    ] {
        let mut request = request;
        request["prompt"] = "a cat".into();
        let (status, refused) = server.post("/api/jobs", &[], &request.to_string());
        assert_eq!(
            (status, refused["error"]["field"].as_str()),
            (422, Some(field)),
            "{refused}"
        );
    }
}
