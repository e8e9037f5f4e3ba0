//! A picture as lines, white on black, without a network: what ControlNets for line art and for scribbles take.
//!
//! Both look at how much darker a pixel is than its surroundings, a difference of Gaussians (Marr and Hildreth 1980;
//! the scribble is the thresholded one of Winnemöller, "XDoG", 2011). Their constants are those of the usual
//! preprocessors `lineart_standard` and `scribble_xdog`, which such ControlNets are used with.

use image::imageops::blur;
use image::{ImageBuffer, Rgb as Pixel, Rgb32FImage};

use crate::Rgb;

const LINEART_DEVIATION_PIXELS: f32 = 6.0;
/// Weaker differences are no lines, and do not count for how strong the lines are.
const LINEART_LEAST: f32 = 8.0;
/// A picture of no strong lines is not made one of many weak ones.
const LINEART_LEAST_MEDIAN: f32 = 16.0;
const SCRIBBLE_DEVIATIONS_PIXELS: (f32, f32) = (0.5, 5.0);
const SCRIBBLE_LEAST: f32 = 16.0;

/// Lines as dark as they are in the picture, half white in the middle. A picture whose bytes do not fit its size comes
/// back as it is.
pub fn lineart(picture: &Rgb) -> Rgb {
    let Some(own) = floats(picture) else {
        return picture.clone();
    };
    let darker = darker(&own, &blur(&own, LINEART_DEVIATION_PIXELS));
    let mut strong: Vec<f32> = darker
        .iter()
        .copied()
        .filter(|one| *one > LINEART_LEAST)
        .collect();
    let median = if strong.is_empty() {
        0.0
    } else {
        let middle = strong.len() / 2;
        *strong.select_nth_unstable_by(middle, f32::total_cmp).1
    };
    let scale = 127.0 / median.max(LINEART_LEAST_MEDIAN);
    drawn(picture, &darker, |one| (one * scale).min(255.0) as u8)
}

/// Lines as of a thick pen: white or black and nothing between. Likewise.
pub fn scribble(picture: &Rgb) -> Rgb {
    let Some(own) = floats(picture) else {
        return picture.clone();
    };
    let (narrow, wide) = SCRIBBLE_DEVIATIONS_PIXELS;
    let darker = darker(&blur(&own, narrow), &blur(&own, wide));
    drawn(picture, &darker, |one| if one > SCRIBBLE_LEAST { 255 } else { 0 })
}

/// In 0 to 1, as the library's filters take them.
fn floats(picture: &Rgb) -> Option<Rgb32FImage> {
    picture.check().ok()?;
    let values = picture.pixels.iter().map(|value| f32::from(*value) / 255.0);
    ImageBuffer::from_raw(picture.width, picture.height, values.collect())
}

/// By how much each pixel is darker than its surroundings in every channel, 0 to 255.
fn darker(own: &Rgb32FImage, around: &Rgb32FImage) -> Vec<f32> {
    let least = |(own, around): (&Pixel<f32>, &Pixel<f32>)| {
        let difference = own.0.iter().zip(around.0).map(|(own, around)| around - own);
        (difference.fold(f32::MAX, f32::min) * 255.0).clamp(0.0, 255.0)
    };
    own.pixels().zip(around.pixels()).map(least).collect()
}

fn drawn(picture: &Rgb, values: &[f32], shade: impl Fn(f32) -> u8) -> Rgb {
    Rgb {
        pixels: values.iter().flat_map(|value| [shade(*value); 3]).collect(),
        ..*picture
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A light picture with a dark vertical bar.
    fn bar(paper: [u8; 3], ink: [u8; 3], width: usize) -> Rgb {
        let from = 32 - width / 2;
        let pixel = |x: usize| {
            if (from..from + width).contains(&x) {
                ink
            } else {
                paper
            }
        };
        let pixels = (0..64).flat_map(|_| (0..64).flat_map(pixel)).collect();
        Rgb::new(64, 64, pixels).unwrap()
    }

    fn at(picture: &Rgb, x: usize) -> u8 {
        picture.pixels[(32 * 64 + x) * 3]
    }

    #[test]
    fn a_dark_bar_is_a_white_line_and_the_paper_is_black() {
        let picture = bar([230; 3], [20; 3], 3);
        for drawn in [lineart(&picture), scribble(&picture)] {
            assert!(at(&drawn, 32) >= 120, "{}", at(&drawn, 32));
            assert_eq!((at(&drawn, 8), at(&drawn, 56)), (0, 0));
            assert!(
                drawn
                    .pixels
                    .chunks(3)
                    .all(|pixel| pixel[0] == pixel[1] && pixel[1] == pixel[2])
            );
        }
        // A pen has no grey.
        assert!(
            scribble(&picture)
                .pixels
                .iter()
                .all(|value| [0, 255].contains(value))
        );
    }

    #[test]
    fn a_light_line_on_dark_and_an_even_picture_are_no_lines() {
        let even = Rgb::new(8, 8, vec![120; 192]).unwrap();
        for drawn in [lineart(&even), scribble(&even)] {
            assert!(drawn.pixels.iter().all(|value| *value == 0));
        }
        assert_eq!(at(&scribble(&bar([20; 3], [230; 3], 3)), 32), 0);
    }

    #[test]
    fn only_what_is_darker_in_every_channel_is_a_line() {
        // Red on white is as bright as before in one channel.
        assert_eq!(at(&scribble(&bar([255; 3], [255, 0, 0], 3)), 32), 0);
    }

    #[test]
    fn a_fainter_line_is_fainter_only_below_the_least_median() {
        let strong = lineart(&bar([230; 3], [20; 3], 3));
        let fair = lineart(&bar([230; 3], [150; 3], 3));
        let faint = lineart(&bar([230; 3], [215; 3], 3));
        assert!(at(&strong, 32).abs_diff(at(&fair, 32)) <= 2);
        assert!((1..100).contains(&at(&faint, 32)), "{}", at(&faint, 32));
    }

    #[test]
    fn a_picture_whose_bytes_do_not_fit_is_left_alone() {
        let broken = Rgb {
            width: 9,
            height: 9,
            pixels: vec![1],
        };
        assert!(lineart(&broken) == broken && scribble(&broken) == broken);
    }
}
