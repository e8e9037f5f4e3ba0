//! What an answer of pictures is to look like, by the `Accept` header (RFC 9110, section 12.5.1). Pure.

use calotype_engine::inference::OutputFormat;

/// What a client takes, the first that we can make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The job as JSON.
    Job,
    /// The first picture's bytes, in the format of the request.
    Picture,
    /// The first picture's bytes, in this format.
    PictureAs(OutputFormat),
    /// Nothing that there is.
    Nothing,
}

/// Without a header, everything is taken: the job. Weights only order: what comes first among equals is taken.
pub(crate) fn wanted(header: Option<&str>) -> Wanted {
    let Some(header) = header.filter(|header| !header.trim().is_empty()) else {
        return Wanted::Job;
    };
    let mut best: Option<(f32, Wanted)> = None;
    for part in header.split(',') {
        let mut pieces = part.split(';').map(str::trim);
        let media = pieces.next().unwrap_or_default().to_ascii_lowercase();
        let weight = pieces
            .find_map(|piece| piece.strip_prefix("q=")?.parse::<f32>().ok())
            .unwrap_or(1.0);
        let meant = match media.as_str() {
            "application/json" | "application/*" | "*/*" => Wanted::Job,
            "image/*" => Wanted::Picture,
            "image/png" => Wanted::PictureAs(OutputFormat::Png),
            "image/jpeg" => Wanted::PictureAs(OutputFormat::Jpeg),
            "image/webp" => Wanted::PictureAs(OutputFormat::Webp),
            _ => continue,
        };
        if weight > 0.0 && best.is_none_or(|(most, _)| weight > most) {
            best = Some((weight, meant));
        }
    }
    best.map_or(Wanted::Nothing, |(_, wanted)| wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heaviest_type_that_can_be_made_is_chosen() {
        use OutputFormat::{Jpeg, Png, Webp};
        for (header, expected) in [
            (None, Wanted::Job),
            (Some(""), Wanted::Job),
            (Some("*/*"), Wanted::Job),
            (Some("application/json"), Wanted::Job),
            (Some("image/png"), Wanted::PictureAs(Png)),
            (Some("IMAGE/JPEG; q=0.5"), Wanted::PictureAs(Jpeg)),
            (Some("image/*"), Wanted::Picture),
            (
                Some("image/avif, image/webp, image/png;q=0.8, */*;q=0.5"),
                Wanted::PictureAs(Webp),
            ),
            (Some("image/png;q=0.1, application/json"), Wanted::Job),
            (Some("image/png;q=0, image/jpeg;q=0.1"), Wanted::PictureAs(Jpeg)),
            (Some("image/avif"), Wanted::Nothing),
            (Some("text/html"), Wanted::Nothing),
        ] {
            assert_eq!(wanted(header), expected, "{header:?}");
        }
    }
}
