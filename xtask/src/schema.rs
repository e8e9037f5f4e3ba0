//! `schema/`: JSON Schema and golden conversations (`golden`), generated from the types of the wire.

mod golden;

use std::fs;

use crate::{Done, root};

pub(crate) fn run(arguments: &[String]) -> Done {
    let only_compare = arguments.iter().any(|argument| argument == "--check");
    let mut files = Vec::new();
    for (name, schema) in [
        ("down.json", calotype_protocol::schema::down()),
        ("up.json", calotype_protocol::schema::up()),
    ] {
        let text = serde_json::to_string_pretty(&schema).map_err(|error| error.to_string())?;
        files.push((name.to_owned(), text + "\n"));
    }
    for (name, lines) in golden::golden() {
        let mut text = String::new();
        for line in lines {
            text.push_str(&serde_json::to_string(&line).map_err(|error| error.to_string())?);
            text.push('\n');
        }
        files.push((format!("golden/{name}.jsonl"), text));
    }
    let folder = root().join("schema");
    for (name, text) in files {
        let path = folder.join(&name);
        if only_compare {
            if fs::read_to_string(&path).ok().as_deref() != Some(&text) {
                return Err(format!(
                    "schema/{name} is not what the types say; run `cargo xtask schema`"
                ));
            }
            continue;
        }
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|error| error.to_string())?;
        }
        fs::write(&path, text).map_err(|error| format!("failed to write {}: {error}", path.display()))?;
    }
    Ok(())
}
