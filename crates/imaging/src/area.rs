//! A rectangle of a picture: chosen from a mask, cut out, and pasted back through the mask. An area that reaches beyond
//! the picture is cut off at its edge.

use crate::{Gray, Rgb, resize_gray, resize_rgb};

/// A rectangle in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// Column of its first pixel.
    pub left: u32,
    /// Row of its first pixel.
    pub top: u32,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

impl Area {
    /// The part of it that lies in a picture of this size; one pixel at least.
    fn within(self, width: u32, height: u32) -> Area {
        let left = self.left.min(width.saturating_sub(1));
        let top = self.top.min(height.saturating_sub(1));
        Area {
            left,
            top,
            width: self.width.clamp(1, (width - left).max(1)),
            height: self.height.clamp(1, (height - top).max(1)),
        }
    }

    /// Where each of its rows begins and ends in a buffer of rows of `width` pixels of `channels` bytes.
    fn rows(self, width: u32, channels: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
        let [left, top, own, rows, width] =
            [self.left, self.top, self.width, self.height, width].map(|extent| extent as usize);
        (top..top + rows).map(move |row| {
            let begin = (row * width + left) * channels;
            begin..begin + own * channels
        })
    }
}

/// The area to repaint when only what is masked is painted anew, at `width` × `height`: the box of the mask, grown by
/// `padding` to each side, then grown to the ratio of `width` to `height` and moved to lie in the picture. Where the
/// picture is too small for that, as much of it as there is. `None` when nothing is masked.
pub fn repaint_area(mask: &Gray, padding: u32, width: u32, height: u32) -> Option<Area> {
    let masked = mask.bounding_box(0)?;
    let (left, across) = padded(masked.left, masked.width, padding, mask.width);
    let (top, down) = padded(masked.top, masked.height, padding, mask.height);
    let (wide, high) = (u64::from(width.max(1)), u64::from(height.max(1)));
    let (left, across) = grown(left, across, rounded(u64::from(down) * wide, high), mask.width);
    let (top, down) = grown(top, down, rounded(u64::from(across) * high, wide), mask.height);
    Some(Area {
        left,
        top,
        width: across,
        height: down,
    })
}

fn rounded(numerator: u64, denominator: u64) -> u64 {
    (numerator + denominator / 2) / denominator
}

/// A stretch with `padding` to both sides, cut off at 0 and `end`.
fn padded(begin: u32, length: u32, padding: u32, end: u32) -> (u32, u32) {
    let from = begin.saturating_sub(padding);
    let to = begin.saturating_add(length).saturating_add(padding).min(end);
    (from, to - from)
}

/// A stretch of `wanted` about the middle of the given one, if that is longer, moved to lie between 0 and `end`.
fn grown(begin: u32, length: u32, wanted: u64, end: u32) -> (u32, u32) {
    let wanted = u32::try_from(wanted).unwrap_or(end).min(end).max(length);
    let from = begin.saturating_sub((wanted - length) / 2).min(end - wanted);
    (from, wanted)
}

/// What lies in the area. A picture whose bytes do not fit its size gives black.
pub fn crop_rgb(picture: &Rgb, area: Area) -> Rgb {
    let area = area.within(picture.width, picture.height);
    Rgb {
        width: area.width,
        height: area.height,
        pixels: cut(&picture.pixels, picture.check().is_ok(), picture.width, area, 3),
    }
}

/// What lies in the area. A mask whose bytes do not fit its size gives black.
pub fn crop_gray(mask: &Gray, area: Area) -> Gray {
    let area = area.within(mask.width, mask.height);
    Gray {
        width: area.width,
        height: area.height,
        pixels: cut(&mask.pixels, mask.check().is_ok(), mask.width, area, 1),
    }
}

fn cut(pixels: &[u8], fits: bool, width: u32, area: Area, channels: usize) -> Vec<u8> {
    if !fits {
        return vec![0; area.width as usize * area.height as usize * channels];
    }
    area.rows(width, channels)
        .flat_map(|row| &pixels[row])
        .copied()
        .collect()
}

/// `base` with `part` in the area, as much of each pixel as the mask is white. The part is resized to the area, the mask
/// to the base. Where the mask is black the base is kept bit for bit. A base whose bytes do not fit its size comes back
/// as it is.
pub fn paste(base: &Rgb, part: &Rgb, area: Area, mask: &Gray) -> Rgb {
    let mut pasted = base.clone();
    if base.check().is_err() {
        return pasted;
    }
    let area = area.within(base.width, base.height);
    let part = resize_rgb(part, area.width, area.height);
    let mask = crop_gray(&resize_gray(mask, base.width, base.height), area);
    let own = area.width as usize;
    let sources = part
        .pixels
        .chunks_exact(own * 3)
        .zip(mask.pixels.chunks_exact(own));
    for (row, (part, mask)) in area.rows(base.width, 3).zip(sources) {
        let pixels = pasted.pixels[row].chunks_exact_mut(3).zip(part.chunks_exact(3));
        for ((below, above), share) in pixels.zip(mask) {
            let share = u32::from(*share);
            for (below, above) in below.iter_mut().zip(above) {
                let sum = u32::from(*above) * share + u32::from(*below) * (255 - share);
                *below = ((sum + 127) / 255) as u8;
            }
        }
    }
    pasted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::encode::tests::{gradient, noise};
    use crate::mask::tests::white_in;

    fn area(left: u32, top: u32, width: u32, height: u32) -> Area {
        Area {
            left,
            top,
            width,
            height,
        }
    }

    #[test]
    fn the_area_to_repaint_is_the_padded_box_in_the_wanted_ratio() {
        let mask = white_in(200, 200, area(90, 90, 20, 20));
        assert_eq!(repaint_area(&mask, 10, 512, 512), Some(area(80, 80, 40, 40)));
        assert_eq!(repaint_area(&mask, 10, 1024, 512), Some(area(60, 80, 80, 40)));
        assert_eq!(repaint_area(&mask, 10, 512, 1024), Some(area(80, 60, 40, 80)));
    }

    #[test]
    fn the_area_to_repaint_is_moved_into_the_picture_before_it_is_cut() {
        let mask = white_in(200, 100, area(0, 40, 10, 20));
        assert_eq!(repaint_area(&mask, 0, 512, 256), Some(area(0, 40, 40, 20)));
        assert_eq!(repaint_area(&mask, 1000, 256, 512), Some(area(0, 0, 200, 100)));
        let right = white_in(200, 100, area(190, 40, 10, 20));
        assert_eq!(repaint_area(&right, 0, 512, 256), Some(area(160, 40, 40, 20)));
    }

    #[test]
    fn a_mask_without_white_has_no_area_to_repaint() {
        assert_eq!(repaint_area(&white_in(8, 8, area(0, 0, 0, 0)), 4, 64, 64), None);
    }

    #[test]
    fn what_was_cropped_and_pasted_back_is_where_it_was() {
        let picture = noise(40, 30, 5);
        let place = area(7, 9, 20, 11);
        let black = Rgb::new(40, 30, vec![0; 3600]).unwrap();
        let pasted = paste(
            &black,
            &crop_rgb(&picture, place),
            place,
            &white_in(40, 30, place),
        );
        assert_eq!(crop_rgb(&pasted, place), crop_rgb(&picture, place));
        assert_eq!(crop_rgb(&pasted, area(0, 0, 40, 9)).pixels, vec![0; 40 * 9 * 3]);
    }

    #[test]
    fn paste_blends_by_the_mask_and_keeps_what_is_black_bit_for_bit() {
        let base = gradient(16, 16);
        let white = Rgb::new(4, 4, vec![255; 48]).unwrap();
        let mut mask = white_in(16, 16, area(0, 0, 0, 0));
        mask.pixels[17] = 128;
        let pasted = paste(&base, &white, area(0, 0, 16, 16), &mask);
        let blended = |below: u8| ((255 * 128 + u32::from(below) * 127 + 127) / 255) as u8;
        for (at, (after, before)) in pasted.pixels.iter().zip(&base.pixels).enumerate() {
            let expected = if at / 3 == 17 { blended(*before) } else { *before };
            assert_eq!(*after, expected);
        }
    }

    #[test]
    fn areas_and_pictures_that_do_not_fit_never_panic() {
        let picture = gradient(5, 4);
        let broken = Rgb {
            width: 9,
            height: 9,
            pixels: vec![1],
        };
        let mask = white_in(3, 3, area(0, 0, 3, 3));
        for place in [
            area(0, 0, 0, 0),
            area(4, 3, 9, 9),
            area(u32::MAX, u32::MAX, u32::MAX, u32::MAX),
        ] {
            let part = crop_rgb(&picture, place);
            assert_eq!(part.pixels.len(), part.width as usize * part.height as usize * 3);
            assert!(crop_rgb(&broken, place).check().is_ok());
            assert!(paste(&picture, &broken, place, &mask).check().is_ok());
            assert_eq!(paste(&broken, &picture, place, &mask), broken);
        }
    }

    proptest! {
        #[test]
        fn the_area_to_repaint_holds_the_mask_and_lies_in_the_picture(
            size in (1u32..300, 1u32..300),
            corner in (0u32..300, 0u32..300),
            extent in (1u32..300, 1u32..300),
            padding in 0u32..400,
            wanted in (1u32..5000, 1u32..5000),
        ) {
            let masked = area(corner.0, corner.1, extent.0, extent.1).within(size.0, size.1);
            let mask = white_in(size.0, size.1, masked);
            let found = repaint_area(&mask, padding, wanted.0, wanted.1).unwrap();
            prop_assert!(found.left <= masked.left && found.top <= masked.top);
            prop_assert!(found.left + found.width >= masked.left + masked.width);
            prop_assert!(found.top + found.height >= masked.top + masked.height);
            prop_assert_eq!(found.within(size.0, size.1), found);
            // Unless the picture was too small, the ratio is the wanted one, to the nearest pixel.
            if found.width < size.0 && found.height < size.1 {
                let ratio = f64::from(wanted.0) / f64::from(wanted.1);
                let near = (f64::from(found.height) * ratio - f64::from(found.width)).abs() <= 0.5
                    || (f64::from(found.width) / ratio - f64::from(found.height)).abs() <= 0.5;
                prop_assert!(near, "{:?}", found);
            }
        }
    }
}
