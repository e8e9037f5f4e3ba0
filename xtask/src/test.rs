//! All tests, in the profile that builds fastest; dependencies are optimised in it.

use crate::{Done, sh, tools};

pub(crate) fn run(arguments: &[String]) -> Done {
    // The whole-program tests run the real binaries.
    sh("cargo", &["build", "--workspace", "--bins", "--quiet"], &[])?;
    let mut all = vec!["test", "--workspace", "--no-fail-fast"];
    all.extend(arguments.iter().map(String::as_str));
    sh("cargo", &all, &[])?;
    if !arguments.is_empty() {
        return Ok(());
    }
    // The worker once more, with the other runtime.
    let Some(library) = tools::onnxruntime()? else {
        eprintln!(
            "skipped: there is no python3 to install ONNX Runtime with; the worker was tested with rten alone"
        );
        return Ok(());
    };
    let library = library.display().to_string();
    sh(
        "cargo",
        &["test", "--package", "calotype-worker", "--test", "model"],
        &[
            ("CALOTYPE_TEST_RUNTIME", "onnxruntime"),
            ("CALOTYPE_ONNXRUNTIME", &library),
        ],
    )
}
