//! A hash of what a picture looks like: near pictures have near hashes.

use crate::{Rgb, resize_rgb};

/// Side of the small picture that is transformed.
const SIDE: usize = 32;
/// Side of the block of low frequencies that is kept: 8 × 8 = 64 bits.
const KEPT: usize = 8;

/// 64 bits from the low frequencies of the brightness. Re-encoding or resizing moves few of them.
pub fn perceptual_hash(picture: &Rgb) -> u64 {
    let small = resize_rgb(picture, SIDE as u32, SIDE as u32);
    let brightness: Vec<f64> = small
        .pixels
        .chunks_exact(3)
        .map(|pixel| 0.299 * f64::from(pixel[0]) + 0.587 * f64::from(pixel[1]) + 0.114 * f64::from(pixel[2]))
        .collect();
    let frequencies = low_frequencies(&brightness);

    // The first one is the mean brightness, which says nothing about the shape.
    let mut sorted = frequencies[1..].to_vec();
    sorted.sort_by(f64::total_cmp);
    let median = sorted[sorted.len() / 2];
    // Noise of the arithmetic on a flat picture must not become bits.
    let threshold = median + 1e-6;
    frequencies
        .iter()
        .fold(0, |hash, frequency| hash << 1 | u64::from(*frequency > threshold))
}

/// In how many of 64 bits two hashes differ: below about 10 the same picture, near 32 unrelated ones.
pub fn distance(left: u64, right: u64) -> u32 {
    (left ^ right).count_ones()
}

/// The first `KEPT` × `KEPT` terms of a two-dimensional DCT-II, row by row.
fn low_frequencies(brightness: &[f64]) -> Vec<f64> {
    let cosine = |frequency: usize, at: usize| {
        (std::f64::consts::PI * frequency as f64 * (2 * at + 1) as f64 / (2 * SIDE) as f64).cos()
    };
    let transform = |line: &[f64]| -> Vec<f64> {
        (0..KEPT)
            .map(|frequency| {
                line.iter()
                    .enumerate()
                    .map(|(at, value)| value * cosine(frequency, at))
                    .sum()
            })
            .collect()
    };
    let rows: Vec<Vec<f64>> = brightness.chunks_exact(SIDE).map(transform).collect();
    let mut both = vec![0.0; KEPT * KEPT];
    for x in 0..KEPT {
        let column: Vec<f64> = rows.iter().map(|row| row[x]).collect();
        for (y, value) in transform(&column).into_iter().enumerate() {
            both[y * KEPT + x] = value;
        }
    }
    both
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::tests::{gradient, noise};
    use crate::{DecodeLimits, Format, decode_rgb, encode};

    #[test]
    fn perceptual_hash_survives_jpeg_and_resize() {
        let picture = resize_rgb(&noise(12, 12, 3), 256, 192);
        let hash = perceptual_hash(&picture);
        let jpeg = encode(&picture, Format::Jpeg, 60, None).unwrap();
        let again = decode_rgb(&jpeg, &DecodeLimits::default()).unwrap();
        assert!(distance(hash, perceptual_hash(&again)) <= 4);
        assert!(distance(hash, perceptual_hash(&resize_rgb(&picture, 100, 100))) <= 6);
    }

    #[test]
    fn perceptual_hash_tells_pictures_apart() {
        let left = perceptual_hash(&resize_rgb(&noise(12, 12, 3), 64, 64));
        let right = perceptual_hash(&resize_rgb(&noise(12, 12, 4), 64, 64));
        assert!(distance(left, right) > 15, "{}", distance(left, right));
        assert!(distance(left, perceptual_hash(&gradient(64, 64))) > 15);
    }

    #[test]
    fn perceptual_hash_of_flat_pictures_is_the_same_at_any_brightness() {
        let flat = |value| Rgb::new(20, 20, vec![value; 1200]).unwrap();
        assert_eq!(perceptual_hash(&flat(30)), perceptual_hash(&flat(220)));
    }
}
