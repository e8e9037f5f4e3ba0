//! Models by name.

use std::path::{Path, PathBuf};

use calotype_protocol::{ModelFormat, ModelSpec};

use super::identify::{self, Graphs};
use super::record::{ModelKind, ModelRecord};
use crate::error::{Code, Error};

/// How like a name must be to be offered instead, 0 to 1.
const LIKE_ENOUGH: f64 = 0.7;

/// Every model and LoRA of the folders. The first folder that has a name wins.
#[derive(Debug, Clone, Default)]
pub struct Catalogue {
    records: Vec<ModelRecord>,
}

impl Catalogue {
    /// Looks into the folders. What is broken becomes a record that says so.
    pub fn scan(dirs: &[PathBuf]) -> Self {
        let architectures: Vec<Graphs> = dirs
            .iter()
            .flat_map(|dir| children(&dir.join("graphs")))
            .filter_map(|folder| identify::graphs(&folder))
            .collect();
        let mut catalogue = Self::default();
        for dir in dirs {
            for path in children(dir) {
                if path.join("model_index.json").is_file() {
                    catalogue.add(identify::folder(&path, &architectures));
                }
            }
            for path in children(&dir.join("loras")) {
                if path
                    .extension()
                    .is_some_and(|extension| extension == "safetensors")
                {
                    catalogue.add(identify::lora(&path));
                }
            }
        }
        catalogue
    }

    fn add(&mut self, record: ModelRecord) {
        if !self.records.iter().any(|known| known.id == record.id) {
            self.records.push(record);
        }
    }

    /// All of them.
    pub fn models(&self) -> impl Iterator<Item = &ModelRecord> {
        self.records.iter()
    }

    /// A model that makes pictures.
    pub fn model(&self, name: &str) -> Result<&ModelRecord, Error> {
        self.named(name, "model", "model", |record| record.kind != ModelKind::Lora)
    }

    /// A model that a worker can be told to load.
    pub fn loadable(&self, name: &str) -> Result<&ModelRecord, Error> {
        self.model(name)
    }

    /// A LoRA, by its id or the name of its sidecar.
    pub fn lora(&self, name: &str) -> Result<&ModelRecord, Error> {
        self.named(name, "LoRA", "loras", |record| record.kind == ModelKind::Lora)
    }

    /// The model of a request that names none: the first usable one.
    pub fn default_model(&self) -> Result<&ModelRecord, Error> {
        let mut models = self
            .records
            .iter()
            .filter(|record| record.kind != ModelKind::Lora);
        let first = models.clone().next();
        models
            .find(|record| record.problem.is_none())
            .or(first)
            .ok_or_else(|| {
                Error::new(Code::UnknownModel, "there is no model")
                    .field("model")
                    .advice("give a folder with --models DIR; `calotype doctor` says where was looked")
            })
    }

    fn named(
        &self,
        name: &str,
        what: &str,
        field: &str,
        wanted: impl Fn(&ModelRecord) -> bool,
    ) -> Result<&ModelRecord, Error> {
        let mut of_kind = self.records.iter().filter(|record| wanted(record));
        if let Some(found) = of_kind.clone().find(|record| record.id.as_str() == name) {
            return Ok(found);
        }
        if let Some(found) = of_kind.find(|record| record.kind == ModelKind::Lora && record.name == name) {
            return Ok(found);
        }
        let names = self
            .records
            .iter()
            .filter(|record| wanted(record))
            .flat_map(|record| {
                let known_as = (record.kind == ModelKind::Lora).then_some(record.name.as_str());
                known_as.into_iter().chain([record.id.as_str()])
            });
        let shown: String = name.chars().take(100).collect();
        Err(
            Error::new(Code::UnknownModel, format!("unknown {what} `{shown}`"))
                .field(field)
                .advice(nearest(name, names)),
        )
    }

    /// What a worker is told to load.
    pub fn spec(&self, record: &ModelRecord) -> ModelSpec {
        ModelSpec {
            id: record.id.clone(),
            family: record.family.clone(),
            format: record.format.unwrap_or(ModelFormat::Diffusers),
            components: record.components.clone(),
        }
    }
}

/// Advice for a name that is not known: those that are like it, or all of them.
pub(crate) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.collect();
    let name: String = name.chars().take(100).collect();
    let mut like: Vec<(f64, &str)> = known
        .iter()
        .map(|known| (strsim::jaro_winkler(&name, known), *known))
        .collect();
    like.sort_by(|a, b| b.0.total_cmp(&a.0));
    let close: Vec<&str> = like
        .iter()
        .filter(|(score, _)| *score >= LIKE_ENOUGH)
        .map(|(_, name)| *name)
        .take(3)
        .collect();
    match (close.as_slice(), known.as_slice()) {
        ([], []) => "there is none".into(),
        ([], all) => format!("there are: {}", all.join(", ")),
        (close, _) => format!("did you mean {}?", close.join(" or ")),
    }
}

fn children(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    fn embedded() -> Catalogue {
        Catalogue::scan(&[PathBuf::from(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../models"
        ))])
    }

    #[test]
    fn the_embedded_model_is_found_with_its_presets_and_its_graphs() {
        let catalogue = embedded();
        let model = catalogue.default_model().unwrap();
        assert_eq!(model.problem, None);
        assert_eq!(
            (model.id.as_str(), model.architecture.as_deref()),
            ("calotype-tiny", Some("calotype-tiny"))
        );
        assert_eq!(
            (model.size, model.size_multiple, model.default_preset.as_deref()),
            ((256, 256), 32, Some("fast"))
        );
        assert_eq!(
            catalogue.lora("pixel").unwrap().id.as_str(),
            "calotype-tiny-pixel"
        );
    }

    #[test]
    fn an_unknown_name_is_answered_with_its_neighbours() {
        let catalogue = embedded();
        let error = catalogue.model("calotype-tny").unwrap_err();
        assert_eq!(
            (error.code, error.field.as_deref()),
            (Code::UnknownModel, Some("model"))
        );
        assert!(error.advice.unwrap().contains("calotype-tiny"));
        assert!(
            catalogue
                .lora("pixl")
                .unwrap_err()
                .advice
                .unwrap()
                .contains("pixel")
        );
    }

    #[test]
    fn hostile_files_become_records_that_say_so() {
        let dir = tempfile::tempdir().unwrap();
        let loras = dir.path().join("loras");
        std::fs::create_dir(&loras).unwrap();
        let mut huge = u64::MAX.to_le_bytes().to_vec();
        huge.extend(b"{}");
        for (name, bytes) in [
            ("empty", vec![]),
            ("huge", huge),
            ("junk", b"\x02\0\0\0\0\0\0\0{]".to_vec()),
        ] {
            std::fs::write(loras.join(format!("{name}.safetensors")), bytes).unwrap();
        }
        let model = dir.path().join("half");
        std::fs::create_dir(&model).unwrap();
        std::fs::write(model.join("model_index.json"), "{}").unwrap();
        let catalogue = Catalogue::scan(&[dir.path().to_owned(), dir.path().join("absent")]);
        assert_eq!(catalogue.models().count(), 4);
        assert!(catalogue.models().all(|record| record.problem.is_some()));
    }
}
