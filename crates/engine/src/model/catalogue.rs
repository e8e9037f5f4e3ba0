//! Models by name.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use calotype_protocol::{ModelFormat, ModelSpec};

use super::record::{ModelKind, ModelRecord, Variant};
use super::{family, file, folder, graphs, swap};
use crate::error::{Code, Error};

/// How like a name must be to be offered instead, 0 to 1.
const LIKE_ENOUGH: f64 = 0.7;

/// Where below a folder of models what is looked for. The folder itself holds checkpoints, and folders of models.
const PLACES: [(&str, ModelKind); 9] = [
    ("", ModelKind::Checkpoint),
    ("checkpoints", ModelKind::Checkpoint),
    ("loras", ModelKind::Lora),
    ("controlnets", ModelKind::Controlnet),
    ("vaes", ModelKind::Vae),
    ("embeddings", ModelKind::Embedding),
    ("text_encoders", ModelKind::TextEncoder),
    ("preprocessors", ModelKind::Preprocessor),
    ("previewers", ModelKind::Previewer),
];

/// Everything in the folders. The first folder that has a name wins.
#[derive(Debug, Clone, Default)]
pub struct Catalogue {
    records: Vec<ModelRecord>,
}

impl Catalogue {
    /// Looks into the folders. What is broken becomes a record that says so.
    pub fn scan(dirs: &[PathBuf]) -> Self {
        let architectures: Vec<graphs::Graphs> = dirs
            .iter()
            .flat_map(|dir| children(&dir.join("graphs")))
            .filter_map(|folder| graphs::read(&folder))
            .collect();
        let mut catalogue = Self::default();
        for dir in dirs {
            for path in children(dir) {
                if path.join("model_index.json").is_file() {
                    catalogue.add(folder::record(&path, &architectures));
                }
            }
            for (place, kind) in PLACES {
                for path in children(&dir.join(place)) {
                    if let Some(record) = file::record(&path, kind) {
                        catalogue.add(record);
                    }
                }
            }
        }
        catalogue
    }

    /// Two kinds may have the same name, two models of a kind may not: ids are told apart by the kind.
    fn add(&mut self, mut record: ModelRecord) {
        let known = |id: &str| self.records.iter().find(|known| known.id.as_str() == id);
        if let Some(first) = known(record.id.as_str()) {
            if first.kind.word() == record.kind.word() {
                return;
            }
            record.id.0 = format!("{}.{}", record.id, record.kind.word());
            if known(record.id.as_str()).is_some() {
                return;
            }
        }
        self.records.push(record);
    }

    /// All of them.
    pub fn models(&self) -> impl Iterator<Item = &ModelRecord> {
        self.records.iter()
    }

    /// A model that makes pictures.
    pub fn model(&self, name: &str) -> Result<&ModelRecord, Error> {
        self.named(name, "model", "model", ModelKind::makes_pictures)
    }

    /// A model that a worker can be told to load: one that makes pictures, a ControlNet or a preprocessor.
    pub fn loadable(&self, name: &str) -> Result<Cow<'_, ModelRecord>, Error> {
        let found = self.named(name, "model", "model", |kind| {
            kind.makes_pictures() || matches!(kind, ModelKind::Controlnet | ModelKind::Preprocessor)
        });
        found.map(Cow::Borrowed).or_else(|unknown| {
            let swapped = swap::swapped(self, name).unwrap_or(Err(unknown));
            swapped.map(Cow::Owned)
        })
    }

    /// A LoRA, by its id or its name.
    pub fn lora(&self, name: &str) -> Result<&ModelRecord, Error> {
        self.named(name, "LoRA", "loras", |kind| kind == ModelKind::Lora)
    }

    /// A ControlNet, by its id or its name.
    pub fn controlnet(&self, name: &str) -> Result<&ModelRecord, Error> {
        self.named(name, "ControlNet", "control", |kind| {
            kind == ModelKind::Controlnet
        })
    }

    /// A VAE, by its id or its name.
    pub fn vae(&self, name: &str) -> Result<&ModelRecord, Error> {
        self.named(name, "VAE", "vae", |kind| kind == ModelKind::Vae)
    }

    /// All VAEs that can be used.
    pub fn vaes(&self) -> impl Iterator<Item = &ModelRecord> {
        self.usable(ModelKind::Vae)
    }

    /// A text encoder, by its id or its name.
    pub fn text_encoder(&self, name: &str) -> Result<&ModelRecord, Error> {
        self.named(name, "text encoder", "text_encoders", |kind| {
            kind == ModelKind::TextEncoder
        })
    }

    /// All text encoders that can be used.
    pub fn text_encoders(&self) -> impl Iterator<Item = &ModelRecord> {
        self.usable(ModelKind::TextEncoder)
    }

    /// A network that makes the images of ControlNets, by its id or its name.
    pub fn preprocessor(&self, name: &str) -> Result<&ModelRecord, Error> {
        self.named(name, "preprocessor", "control", |kind| {
            kind == ModelKind::Preprocessor
        })
    }

    /// All of them that can be used.
    pub fn preprocessors(&self) -> impl Iterator<Item = &ModelRecord> {
        self.usable(ModelKind::Preprocessor)
    }

    /// A textual inversion, by its id or its name.
    pub fn embedding(&self, name: &str) -> Result<&ModelRecord, Error> {
        self.named(name, "embedding", "prompt", |kind| kind == ModelKind::Embedding)
    }

    /// All textual inversions that can be used; each stands for the word that is its `trigger`.
    pub fn embeddings(&self) -> impl Iterator<Item = &ModelRecord> {
        self.usable(ModelKind::Embedding)
    }

    fn usable(&self, kind: ModelKind) -> impl Iterator<Item = &ModelRecord> {
        let wanted = move |record: &&ModelRecord| record.kind == kind && record.problem.is_none();
        self.records.iter().filter(wanted)
    }

    /// Any record, whatever its kind, by its id, or by its name where only one has it.
    pub fn find(&self, name: &str) -> Result<&ModelRecord, Error> {
        if let Some(record) = self.records.iter().find(|record| record.id.as_str() == name) {
            return Ok(record);
        }
        let shown: String = name.chars().take(100).collect();
        let named: Vec<&ModelRecord> = self.records.iter().filter(|record| record.name == name).collect();
        match named.as_slice() {
            [record] => Ok(record),
            [] => {
                let known = self
                    .records
                    .iter()
                    .flat_map(|record| [record.id.as_str(), record.name.as_str()]);
                let known: BTreeSet<&str> = known.collect();
                let error = Error::new(Code::NotFound, format!("there is no model `{shown}`"));
                Err(error.advice(nearest(name, known.into_iter())))
            }
            several => {
                let ids = several
                    .iter()
                    .map(|record| format!("`{}` ({})", record.id, record.kind.word()));
                let ids = ids.collect::<Vec<_>>().join(", ");
                let message = format!("{} models have the name `{shown}`", several.len());
                Err(Error::invalid("id", message)
                    .advice(format!("use the id of the one that is meant: {ids}")))
            }
        }
    }

    /// The model of a request that names none: the first one that the native worker can take, else the first usable
    /// one. Variants, which ask for more than a prompt, come last.
    pub fn default_model(&self) -> Result<&ModelRecord, Error> {
        let models = || self.records.iter().filter(|record| record.kind.makes_pictures());
        let usable = || models().filter(|record| record.problem.is_none());
        usable()
            .find(|record| record.has_graphs())
            .or_else(|| usable().find(|record| record.variant == Variant::Base && record.lacks.is_empty()))
            .or_else(|| usable().find(|record| record.variant == Variant::Base))
            .or_else(|| usable().next())
            .or_else(|| models().next())
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
        wanted: impl Fn(ModelKind) -> bool,
    ) -> Result<&ModelRecord, Error> {
        let of_kind = || self.records.iter().filter(|record| wanted(record.kind));
        let by_name = |record: &&ModelRecord| !record.kind.makes_pictures() && record.name == name;
        let found = of_kind().find(|record| record.id.as_str() == name);
        if let Some(found) = found.or_else(|| of_kind().find(by_name)) {
            return Ok(found);
        }
        let names = of_kind().flat_map(|record| {
            let also = !record.kind.makes_pictures() && record.name != record.id.as_str();
            let known_as = also.then_some(record.name.as_str());
            known_as.into_iter().chain([record.id.as_str()])
        });
        let shown: String = name.chars().take(100).collect();
        Err(
            Error::new(Code::UnknownModel, format!("unknown {what} `{shown}`"))
                .field(field)
                .advice(nearest(name, names)),
        )
    }

    /// The parts of a model by role, with the small VAE for its previews where there is one for its latents.
    fn components(&self, record: &ModelRecord) -> BTreeMap<String, String> {
        let mut components = record.components.clone();
        let is_for = |small: &&ModelRecord| {
            small.family == family::of_latents(&record.family)
                && small.latent_channels == record.latent_channels
        };
        let small = record
            .usual_vae
            .then(|| self.usable(ModelKind::Previewer).find(is_for))
            .flatten();
        if let Some(small) = small {
            components.insert("taesd".into(), small.path.clone());
        }
        components
    }

    /// What a worker is told to load.
    pub fn spec(&self, record: &ModelRecord) -> ModelSpec {
        ModelSpec {
            id: record.id.clone(),
            // Workers take ControlNets and preprocessors as families of their own.
            family: match record.kind {
                ModelKind::Controlnet => "controlnet".into(),
                ModelKind::Preprocessor => "preprocessor".into(),
                ModelKind::Diffusers
                | ModelKind::Onnx
                | ModelKind::Checkpoint
                | ModelKind::Lora
                | ModelKind::Vae
                | ModelKind::TextEncoder
                | ModelKind::Previewer
                | ModelKind::Embedding => record.family.clone(),
            },
            format: record.format.unwrap_or(ModelFormat::Diffusers),
            components: self.components(record),
            segments: BTreeMap::new(),
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
    // What is never opened comes last, so that a file that can be goes before it under the same name.
    paths.sort_by_key(|path| (file::is_pickle(path), path.clone()));
    paths
}

#[cfg(test)]
mod tests;
