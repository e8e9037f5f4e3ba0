//! Pixels to pixels of another size, by Lanczos3.

use image::imageops::FilterType;
use image::{DynamicImage, GrayImage, RgbImage};

use crate::{Gray, Rgb};

/// The picture at `width` × `height`. A side of zero is taken as one. The same size gives a copy.
pub fn resize_rgb(picture: &Rgb, width: u32, height: u32) -> Rgb {
    let (width, height) = (width.max(1), height.max(1));
    // A picture whose bytes do not fit its size has no pixels to sample: the answer is black, never a panic.
    let source =
        RgbImage::from_raw(picture.width, picture.height, picture.pixels.clone()).unwrap_or_default();
    let resized = resize(DynamicImage::ImageRgb8(source), width, height).into_rgb8();
    Rgb {
        width,
        height,
        pixels: resized.into_raw(),
    }
}

/// The mask at `width` × `height`. A side of zero is taken as one. The same size gives a copy.
pub fn resize_gray(mask: &Gray, width: u32, height: u32) -> Gray {
    let (width, height) = (width.max(1), height.max(1));
    let source = GrayImage::from_raw(mask.width, mask.height, mask.pixels.clone()).unwrap_or_default();
    let resized = resize(DynamicImage::ImageLuma8(source), width, height).into_luma8();
    Gray {
        width,
        height,
        pixels: resized.into_raw(),
    }
}

// `from_raw` also takes a buffer that is longer than needed, and `into_raw` would give the rest back.
fn resize(source: DynamicImage, width: u32, height: u32) -> DynamicImage {
    source.resize_exact(width, height, FilterType::Lanczos3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::psnr;

    #[test]
    fn resize_there_and_back_is_nearly_the_same() {
        let picture = crate::encode::tests::gradient(64, 48);
        let larger = resize_rgb(&picture, 128, 96);
        assert_eq!(
            (larger.width, larger.height, larger.pixels.len()),
            (128, 96, 128 * 96 * 3)
        );
        assert!(psnr(&picture, &resize_rgb(&larger, 64, 48)) > 35.0);
        assert_eq!(resize_rgb(&picture, 64, 48), picture);
    }

    #[test]
    fn resize_keeps_a_flat_mask_flat() {
        let mask = Gray::new(10, 10, vec![200; 100]).unwrap();
        assert!(resize_gray(&mask, 33, 7).pixels.iter().all(|pixel| *pixel == 200));
    }

    #[test]
    fn resize_never_panics_on_odd_sizes() {
        let broken = Rgb {
            width: 9,
            height: 9,
            pixels: vec![1],
        };
        assert_eq!(resize_rgb(&broken, 0, 2).pixels, vec![0; 6]);
        let empty = Gray {
            width: 0,
            height: 0,
            pixels: vec![],
        };
        assert_eq!(resize_gray(&empty, 3, 3).pixels, vec![0; 9]);
        let long = Rgb {
            width: 2,
            height: 2,
            pixels: vec![7; 100],
        };
        assert_eq!(resize_rgb(&long, 2, 2).pixels.len(), 12);
    }
}
