//! All tests, in the profile that builds fastest; dependencies are optimised in it.

use crate::{Done, sh};

pub(crate) fn run(arguments: &[String]) -> Done {
    // The whole-program tests run the real binaries.
    sh("cargo", &["build", "--workspace", "--bins", "--quiet"], &[])?;
    let mut all = vec!["test", "--workspace", "--no-fail-fast"];
    all.extend(arguments.iter().map(String::as_str));
    sh("cargo", &all, &[])
}
