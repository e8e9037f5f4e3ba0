//! All tests, in the profile that builds fastest; dependencies are optimised in it.

use crate::{Done, sh, sh_in, tools};

pub(crate) fn run(arguments: &[String]) -> Done {
    // The whole-program tests run the real binaries.
    sh("cargo", &["build", "--workspace", "--bins", "--quiet"], &[])?;
    let mut all = vec!["test", "--workspace", "--no-fail-fast"];
    all.extend(arguments.iter().map(String::as_str));
    sh("cargo", &all, &[])?;
    if !arguments.is_empty() {
        return Ok(());
    }
    // The native worker once more, with the other runtime.
    match tools::onnxruntime()? {
        None => eprintln!(
            "skipped: no python3 to install ONNX Runtime with; the native worker was tested with rten alone"
        ),
        Some(library) => {
            let library = library.display().to_string();
            sh(
                "cargo",
                &["test", "--package", "calotype-worker", "--test", "model"],
                &[
                    ("CALOTYPE_TEST_RUNTIME", "onnxruntime"),
                    ("CALOTYPE_ONNXRUNTIME", &library),
                ],
            )?;
        }
    }
    // The Python worker: on its own, through the whole program, and with the faults that a supervisor meets.
    let Some(python) = tools::python_worker()? else {
        eprintln!("skipped: no python3, and so nothing of the Python worker was tested");
        return Ok(());
    };
    let python = python.display().to_string();
    let offline = ("HF_HUB_OFFLINE", "1");
    sh_in("python", &python, &["-m", "pytest"], &[offline])?;
    sh(
        "cargo",
        &[
            "test",
            "--package",
            "calotype",
            "--test",
            "python",
            "--test",
            "families",
            "--package",
            "calotype-engine",
            "--test",
            "python_faults",
            "--test",
            "weight_cache",
        ],
        &[("CALOTYPE_PYTHON", &python), offline],
    )
}
