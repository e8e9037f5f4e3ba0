//! How far apart two pictures are, pixel by pixel.

use crate::Rgb;

/// Peak signal-to-noise ratio in decibels: infinite for equal pictures, above 40 hard to see, below 20 plain to see.
/// Pictures of different sizes have nothing in common: 0.
pub fn psnr(left: &Rgb, right: &Rgb) -> f64 {
    let same_size = (left.width, left.height) == (right.width, right.height);
    if !same_size || left.pixels.len() != right.pixels.len() || left.pixels.is_empty() {
        return 0.0;
    }
    let squares: u64 = left
        .pixels
        .iter()
        .zip(&right.pixels)
        .map(|(left, right)| u64::from(left.abs_diff(*right)).pow(2))
        .sum();
    let mean = squares as f64 / left.pixels.len() as f64;
    // Zero error divides to infinity, which is the answer.
    10.0 * (255.0 * 255.0 / mean).log10()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn psnr_of_equal_pictures_is_infinite_and_of_opposites_zero() {
        let black = Rgb::new(4, 4, vec![0; 48]).unwrap();
        let white = Rgb::new(4, 4, vec![255; 48]).unwrap();
        let grey = Rgb::new(4, 4, vec![1; 48]).unwrap();
        assert_eq!(psnr(&black, &black), f64::INFINITY);
        assert_eq!(psnr(&black, &white), 0.0);
        assert!((psnr(&black, &grey) - 48.13).abs() < 0.01);
        assert_eq!(psnr(&black, &Rgb::new(2, 8, vec![0; 48]).unwrap()), 0.0);
    }
}
