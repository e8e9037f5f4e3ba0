//! The text that the web UI of AUTOMATIC1111 made customary, and most programs and sites read:
//!
//! ```text
//! <prompt>
//! Negative prompt: <negative prompt>
//! Steps: 4, Sampler: euler, CFG scale: 7.5, Seed: 1, Size: 512x512, Model: "a, b", Version: calotype 0.1.0
//! ```
//!
//! A value that holds a comma, a colon or a quote is written as a JSON string. A prompt that itself looks like one of
//! the lines cannot be told from them; then the last line also has it as `Exact prompt`, which our reader prefers and
//! others ignore. So every prompt is read back exactly.

use std::fmt::Display;

use crate::Metadata;

const NEGATIVE_PROMPT: &str = "Negative prompt:";
const EXACT_PROMPT: &str = "Exact prompt";
const EXACT_NEGATIVE_PROMPT: &str = "Exact negative prompt";
/// A last line with fewer settings than this belongs to the prompt, unless it begins as the settings do.
const FEWEST_SETTINGS: usize = 3;

/// What a text says, from us or from another program.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parameters {
    /// What was asked for.
    pub prompt: String,
    /// What was to be avoided; empty for nothing.
    pub negative_prompt: String,
    /// Names and values of the last line, in its order, unquoted.
    pub settings: Vec<(String, String)>,
}

impl Parameters {
    /// The value of a setting; names are told apart without regard to case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.settings
            .iter()
            .find(|(have, _)| have.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// Denoising steps.
    pub fn steps(&self) -> Option<u32> {
        self.get("Steps")?.parse().ok()
    }

    /// Name of the sampler, as the program that wrote it calls it.
    pub fn sampler(&self) -> Option<&str> {
        self.get("Sampler")
    }

    /// Name of the noise schedule, as the program that wrote it calls it.
    pub fn schedule(&self) -> Option<&str> {
        self.get("Schedule type")
    }

    /// Guidance scale.
    pub fn guidance(&self) -> Option<f32> {
        self.get("CFG scale")?.parse().ok()
    }

    /// The seed.
    pub fn seed(&self) -> Option<u64> {
        self.get("Seed")?.parse().ok()
    }

    /// Width and height in pixels.
    pub fn size(&self) -> Option<(u32, u32)> {
        let (width, height) = self.get("Size")?.split_once('x')?;
        Some((width.parse().ok()?, height.parse().ok()?))
    }

    /// Name of the model.
    pub fn model(&self) -> Option<&str> {
        self.get("Model")
    }

    /// How far it was allowed to leave the picture it began with.
    pub fn strength(&self) -> Option<f32> {
        self.get("Denoising strength")?.parse().ok()
    }

    /// Layers of the text encoder that were left out.
    pub fn clip_skip(&self) -> Option<u32> {
        self.get("Clip skip")?.parse().ok()
    }
}

impl Metadata {
    /// The text for other programs.
    pub fn to_parameters(&self) -> String {
        let mut settings = vec![
            setting("Steps", self.steps),
            setting("Sampler", &self.sampler),
            setting("Schedule type", &self.schedule),
            setting("CFG scale", self.guidance),
            setting("Seed", self.seed),
            setting("Size", format_args!("{}x{}", self.width, self.height)),
            setting("Model", &self.model),
        ];
        settings.extend(
            self.strength
                .map(|strength| setting("Denoising strength", strength)),
        );
        settings.extend(self.clip_skip.map(|clip_skip| setting("Clip skip", clip_skip)));
        if !self.loras.is_empty() {
            let loras: Vec<String> = self
                .loras
                .iter()
                .map(|lora| format!("{}: {}", lora.name, lora.weight))
                .collect();
            settings.push(setting("Loras", loras.join(", ")));
        }
        settings.push(setting("Mode", &self.mode));
        settings.extend(self.preset.as_ref().map(|preset| setting("Preset", preset)));
        settings.extend(self.engine.as_ref().map(|engine| setting("Engine", engine)));

        let mut body = self.prompt.clone();
        if !self.negative_prompt.is_empty() {
            body = format!("{body}\n{NEGATIVE_PROMPT} {}", self.negative_prompt);
        }
        if split_body(&body) != (self.prompt.as_str(), self.negative_prompt.as_str()) {
            settings.push(setting(EXACT_PROMPT, &self.prompt));
            settings.push(setting(EXACT_NEGATIVE_PROMPT, &self.negative_prompt));
        }
        // Last, as others have it.
        settings.push(setting("Version", &self.software));
        format!("{body}\n{}", settings.join(", "))
    }
}

/// Reads such a text. Never fails: what is no setting is prompt.
pub fn parse_parameters(text: &str) -> Parameters {
    // Some writers end the text with a line feed or a zero.
    let text = text.trim_end_matches(['\n', '\r', ' ', '\0']);
    let (body, last) = text.rsplit_once('\n').unwrap_or(("", text));
    let mut settings = parse_settings(last);
    if settings.len() < FEWEST_SETTINGS && !last.trim_start().starts_with("Steps:") {
        let (prompt, negative_prompt) = split_body(text);
        let (prompt, negative_prompt) = (prompt.to_owned(), negative_prompt.to_owned());
        return Parameters {
            prompt,
            negative_prompt,
            settings: Vec::new(),
        };
    }

    let mut take = |name: &str| {
        let at = settings.iter().position(|(have, _)| have == name)?;
        Some(settings.remove(at).1)
    };
    let (prompt, negative_prompt) = split_body(body);
    let prompt = take(EXACT_PROMPT).unwrap_or_else(|| prompt.to_owned());
    let negative_prompt = take(EXACT_NEGATIVE_PROMPT).unwrap_or_else(|| negative_prompt.to_owned());
    Parameters {
        prompt,
        negative_prompt,
        settings,
    }
}

/// Parts what stands above the settings at the first line that begins a negative prompt.
fn split_body(body: &str) -> (&str, &str) {
    let (prompt, negative_prompt) = match body.strip_prefix(NEGATIVE_PROMPT) {
        Some(negative_prompt) => ("", negative_prompt),
        None => match body.find("\nNegative prompt:") {
            Some(at) => (&body[..at], &body[at + 1 + NEGATIVE_PROMPT.len()..]),
            None => return (body, ""),
        },
    };
    (
        prompt,
        negative_prompt.strip_prefix(' ').unwrap_or(negative_prompt),
    )
}

fn setting(name: &str, value: impl Display) -> String {
    format!("{name}: {}", quote(&value.to_string()))
}

fn quote(value: &str) -> String {
    let plain = !value.is_empty()
        && value.trim() == value
        && !value.contains(|c: char| matches!(c, ',' | ':' | '"') || c.is_control());
    if plain {
        value.to_owned()
    } else {
        serde_json::Value::from(value).to_string()
    }
}

/// The settings of a line. A piece between commas that has no name is passed over.
fn parse_settings(line: &str) -> Vec<(String, String)> {
    let mut settings = Vec::new();
    let mut rest = line;
    while !rest.is_empty() {
        let piece = &rest[..rest.find(',').unwrap_or(rest.len())];
        let name = piece
            .split_once(':')
            .map(|(name, _)| name)
            .filter(|name| is_name(name.trim()));
        let Some(name) = name else {
            rest = after_comma(rest, piece.len());
            continue;
        };
        let value = &rest[name.len() + 1..];
        let blank = value.len() - value.trim_start().len();
        let (value, end) = match quoted(&value[blank..]) {
            Some((value, length)) => (value, name.len() + 1 + blank + length),
            None => (piece[name.len() + 1..].trim().to_owned(), piece.len()),
        };
        settings.push((name.trim().to_owned(), value));
        rest = after_comma(rest, end);
    }
    settings
}

fn after_comma(text: &str, from: usize) -> &str {
    let rest = &text[from..];
    rest.find(',').map_or("", |comma| &rest[comma + 1..])
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_alphanumeric() || c == '_')
        && name
            .chars()
            .all(|c| c.is_alphanumeric() || matches!(c, '_' | ' ' | '-' | '/'))
}

/// The JSON string at the start of `text` and its length there.
fn quoted(text: &str) -> Option<(String, usize)> {
    let inside = text.strip_prefix('"')?;
    let mut escaped = false;
    let end = inside.find(|c: char| {
        let closes = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        closes
    })?;
    let length = end + 2;
    Some((serde_json::from_str(&text[..length]).ok()?, length))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::metadata::tests::sample;

    #[test]
    fn parameters_are_written_as_other_programs_expect() {
        let metadata = Metadata { seed: 7, ..sample() };
        assert_eq!(
            metadata.to_parameters(),
            "a cat, \"in oil\",\nby the sea — 猫 🐈\n\
             Negative prompt: blurry, low quality\n\
             Steps: 4, Sampler: euler, Schedule type: karras, CFG scale: 7.5, Seed: 7, Size: 512x768, \
             Model: calotype-tiny, Denoising strength: 0.6, Clip skip: 2, Loras: \"ink, wash: 0.8\", \
             Mode: txt2img, Preset: draft, Engine: native, Version: calotype 0.1.0"
        );
    }

    #[test]
    fn parameters_of_the_web_ui_are_read() {
        let text = "masterpiece, (cat:1.2) <lora:ink:0.8>\nsecond line\nNegative prompt: bad, worse\nworst\n\
            Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 123456789, Size: 512x768, \
            Model hash: abc123, Model: v1-5, Lora hashes: \"ink: 0a1b, wash: 2c3d\", \
            Civitai resources: [{\"type\":\"lora\",\"weight\":1}], Version: v1.10.1\n";
        let parameters = parse_parameters(text);
        assert_eq!(
            parameters.prompt,
            "masterpiece, (cat:1.2) <lora:ink:0.8>\nsecond line"
        );
        assert_eq!(parameters.negative_prompt, "bad, worse\nworst");
        assert_eq!(parameters.steps(), Some(20));
        assert_eq!(parameters.sampler(), Some("DPM++ 2M"));
        assert_eq!(parameters.schedule(), Some("Karras"));
        assert_eq!(parameters.guidance(), Some(7.0));
        assert_eq!(parameters.seed(), Some(123_456_789));
        assert_eq!(parameters.size(), Some((512, 768)));
        assert_eq!(parameters.model(), Some("v1-5"));
        assert_eq!(parameters.get("lora HASHES"), Some("ink: 0a1b, wash: 2c3d"));
        assert_eq!(parameters.get("Version"), Some("v1.10.1"));
    }

    #[test]
    fn a_text_without_settings_is_all_prompt() {
        let parameters = parse_parameters("a cat: in oil\nNegative prompt: dogs");
        assert_eq!(
            (parameters.prompt.as_str(), parameters.negative_prompt.as_str()),
            ("a cat: in oil", "dogs")
        );
        assert!(parameters.settings.is_empty());
        assert_eq!(parse_parameters(""), Parameters::default());
        assert_eq!(parse_parameters("Steps: 5").steps(), Some(5));
    }

    #[test]
    fn prompts_that_look_like_the_lines_are_read_back_exactly() {
        for prompt in [
            "",
            "Negative prompt: x",
            "a\nNegative prompt:b",
            "Steps: 1, Seed: 2, Size: 3x3",
            "a\n\n",
            "\n",
            " \r\n",
            "Exact prompt: \"x\"",
        ] {
            for negative_prompt in ["", " ", "\nNegative prompt: y", prompt] {
                let metadata = Metadata {
                    prompt: prompt.to_owned(),
                    negative_prompt: negative_prompt.to_owned(),
                    ..sample()
                };
                let parameters = parse_parameters(&metadata.to_parameters());
                assert_eq!(parameters.prompt, prompt);
                assert_eq!(parameters.negative_prompt, negative_prompt);
                assert_eq!(parameters.get("Exact prompt"), None);
            }
        }
    }

    /// Text made of the pieces that mean something here, and of anything.
    fn any_text() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            any::<String>(),
            prop::sample::select(vec![
                "\n",
                "\r",
                " ",
                ",",
                ":",
                "\"",
                "\\",
                "\0",
                "Negative prompt:",
                "Negative prompt: ",
                "Steps: 4",
                "Exact prompt: ",
                "Seed: 1, ",
                "猫",
                "\u{2028}",
            ])
            .prop_map(str::to_owned),
        ];
        prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn parameters_read_equal_metadata_written(
            prompt in any_text(),
            negative_prompt in any_text(),
            model in any_text(),
            software in any_text(),
            lora in any_text(),
            seed: u64,
            guidance in -1e6_f32..1e6,
        ) {
            let mut metadata = Metadata { prompt, negative_prompt, model, software, seed, guidance, ..sample() };
            metadata.loras[0].name = lora.clone();
            let parameters = parse_parameters(&metadata.to_parameters());
            prop_assert_eq!(&parameters.prompt, &metadata.prompt);
            prop_assert_eq!(&parameters.negative_prompt, &metadata.negative_prompt);
            prop_assert_eq!(parameters.model(), Some(metadata.model.as_str()));
            prop_assert_eq!(parameters.get("Version"), Some(metadata.software.as_str()));
            let expected = format!("{lora}: 0.8");
            prop_assert_eq!(parameters.get("Loras"), Some(expected.as_str()));
            prop_assert_eq!(parameters.seed(), Some(metadata.seed));
            prop_assert_eq!(parameters.guidance(), Some(metadata.guidance));
            prop_assert_eq!(parameters.settings.len(), 14);
        }

        #[test]
        fn parse_parameters_never_panics(text in any_text()) {
            let _ = parse_parameters(&text);
        }
    }
}
