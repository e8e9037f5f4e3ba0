//! Other layouts of a model, through the whole program: what draws the same picture must not depend on the layout.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "the other tests use the rest")]
mod support;

use std::fs;
use std::path::{Path, PathBuf};

use calotype_imaging::{DecodeLimits, Rgb, decode_rgb, psnr};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use support::Server;

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models")
}

/// The embedded model as Optimum exports one: an ONNX file a part, its weights in a file beside it.
fn in_optimum_layout(folder: &Path) {
    let (graphs, weights) = (
        models().join("graphs/calotype-tiny"),
        models().join("calotype-tiny"),
    );
    let description: Value = serde_json::from_slice(&fs::read(graphs.join("graph.json")).unwrap()).unwrap();
    for (name, component) in description["components"].as_object().unwrap() {
        let part = folder.join(name);
        fs::create_dir_all(&part).unwrap();
        fs::copy(
            graphs.join(component["graph"].as_str().unwrap()),
            part.join("model.onnx"),
        )
        .unwrap();
        let source = weights.join(component["role"].as_str().unwrap());
        fs::copy(source.join("config.json"), part.join("config.json")).unwrap();
        let file = ["model.safetensors", "diffusion_pytorch_model.safetensors"]
            .map(|name| source.join(name))
            .into_iter()
            .find(|file| file.is_file());
        fs::write(
            part.join("weights.data"),
            laid_out(component, &fs::read(file.unwrap()).unwrap()),
        )
        .unwrap();
    }
    for copied in [
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/special_tokens_map.json",
        "model_index.json",
    ] {
        fs::create_dir_all(folder.join(copied).parent().unwrap()).unwrap();
        fs::copy(weights.join(copied), folder.join(copied)).unwrap();
    }
    let sidecar = json!({
        "format": 1,
        "size": { "width": 256, "height": 256 },
        "size_multiple": 32,
        "default_preset": "quality",
        "presets": { "quality": { "sampler": "dpmpp_2m", "steps": 20, "guidance": 3.0 } },
    });
    fs::write(folder.join("calotype.json"), sidecar.to_string()).unwrap();
}

/// The tensors as f32 at the offsets of the graph.
fn laid_out(component: &Value, file: &[u8]) -> Vec<u8> {
    let tensors = SafeTensors::deserialize(file).unwrap();
    let mut out = vec![0; component["bytes"].as_u64().unwrap() as usize];
    for slot in component["tensors"].as_array().unwrap() {
        let tensor = tensors.tensor(slot["name"].as_str().unwrap()).unwrap();
        assert_eq!(tensor.dtype(), Dtype::F16);
        let numbers = tensor.data().chunks_exact(2).flat_map(|two| {
            let half = half::f16::from_le_bytes([two[0], two[1]]);
            half.to_f32().to_le_bytes()
        });
        let offset = slot["offset"].as_u64().unwrap() as usize;
        for (place, byte) in out[offset..].iter_mut().zip(numbers) {
            *place = byte;
        }
    }
    out
}

fn picture(server: &Server, request: &Value) -> Rgb {
    let hash = server.picture(&server.submit(request));
    let (_, png) = server.bytes(&format!("/api/artifacts/{hash}"), &[]);
    decode_rgb(&png, &DecodeLimits::default()).unwrap()
}

#[test]
fn an_onnx_folder_in_optimums_layout_draws_what_its_safetensors_draw() {
    let dir = tempfile::tempdir().unwrap();
    let added = dir.path().join("models");
    in_optimum_layout(&added.join("tiny-onnx"));
    let server = Server::start_with(
        &dir.path().join("data"),
        &["--runtime", "rten", "--models", added.to_str().unwrap()],
    );
    let record = server.get("/api/models/tiny-onnx");
    assert_eq!(
        (&record["format"], &record["problem"]),
        (&json!("onnx"), &Value::Null),
        "{record}"
    );
    let mut request =
        json!({ "prompt": "an owl", "seed": 3, "preset": "quality", "steps": 6, "model": "tiny-onnx" });
    let from_onnx = picture(&server, &request);
    request["model"] = json!("calotype-tiny");
    let from_safetensors = picture(&server, &request);
    // The same numbers through the same graphs; only where the weights lie differs.
    assert!(psnr(&from_onnx, &from_safetensors) > 60.0);
    // There are no named tensors to sum a LoRA into: that is said, and nothing is drawn without it.
    request["model"] = json!("tiny-onnx");
    request["loras"] = json!([{ "name": "pixel" }]);
    let (status, refused) = server.post("/api/inference/generate", &[], &request.to_string());
    assert_eq!(status, 422, "{refused}");
}

#[test]
fn a_model_that_is_broken_is_a_problem_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let added = dir.path().join("models");
    let folder = added.join("torn");
    in_optimum_layout(&folder);
    fs::write(folder.join("unet/model.onnx"), b"not a graph").unwrap();
    let server = Server::start_with(
        &dir.path().join("data"),
        &["--runtime", "rten", "--models", added.to_str().unwrap()],
    );
    let job = server.submit(&json!({ "prompt": "a", "seed": 1, "model": "torn" }));
    let error = server.ended(&job)["error"].clone();
    assert_eq!(error["code"], "MODEL_UNUSABLE", "{error}");
    assert!(
        error["message"].as_str().unwrap().contains("unet/model.onnx"),
        "{error}"
    );
    // The worker lives, and the others draw.
    let other = json!({ "prompt": "a dog", "seed": 1, "model": "calotype-tiny" });
    server.picture(&server.submit(&other));
}

#[test]
fn a_vae_in_place_of_the_models_own_makes_it_another_model_to_its_worker() {
    let dir = tempfile::tempdir().unwrap();
    let added = dir.path().join("models");
    let vae = added.join("vaes/copied");
    fs::create_dir_all(&vae).unwrap();
    for file in ["config.json", "diffusion_pytorch_model.safetensors"] {
        fs::copy(models().join("calotype-tiny/vae").join(file), vae.join(file)).unwrap();
    }
    let server = Server::start_with(
        &dir.path().join("data"),
        &["--runtime", "rten", "--models", added.to_str().unwrap()],
    );
    let mut request = json!({ "prompt": "an owl", "seed": 3, "preset": "quality", "steps": 4 });
    let own = picture(&server, &request);
    request["vae"] = json!("copied");
    // The same weights, from another place.
    assert_eq!(picture(&server, &request).pixels, own.pixels);
    let devices = server.get("/api/devices");
    let resident = devices[0]["workers"][0]["resident"].as_array().unwrap();
    assert!(
        resident.contains(&json!("calotype-tiny+vae:copied")),
        "{resident:?}"
    );
    request["vae"] = json!("copid");
    let (status, refused) = server.post("/api/jobs", &[], &request.to_string());
    assert_eq!((status, &refused["error"]["field"]), (422, &json!("vae")));
    assert!(refused["error"]["advice"].as_str().unwrap().contains("copied"));
}
