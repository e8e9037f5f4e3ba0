//! Masks made larger, smaller, softer or the opposite. White is where to repaint. A mask whose bytes do not fit its size
//! comes back as it is.

use crate::{Area, Gray};

/// The widest blur; its sum over neighbours already takes in a whole picture of usual size.
const MOST_BLUR_PIXELS: f32 = 256.0;
/// How many standard deviations of the bell are summed, as in the web UI's mask blur.
const BLUR_REACH: f32 = 2.5;

impl Gray {
    /// Black for white.
    pub fn invert(&self) -> Gray {
        let pixels = self.pixels.iter().map(|pixel| 255 - pixel).collect();
        Gray { pixels, ..*self }
    }

    /// Grows what is white by a square of `pixels` to each side; less than zero lets it shrink. What lies outside the
    /// picture neither grows into it nor eats from its edge.
    pub fn dilate(&self, pixels: i32) -> Gray {
        let reach = pixels.unsigned_abs() as usize;
        if reach == 0 || self.check().is_err() {
            return self.clone();
        }
        if pixels < 0 {
            // To shrink the white is to grow the black.
            return self.invert().dilate(pixels.saturating_neg()).invert();
        }
        self.by_lines(|line| largest_near(line, reach))
    }

    /// A Gaussian blur with this standard deviation, 256 at most; beyond its edges the picture goes on as it ends.
    pub fn blur(&self, radius_pixels: f32) -> Gray {
        if radius_pixels.is_nan() || radius_pixels <= 0.0 || self.check().is_err() {
            return self.clone();
        }
        let bell = bell(radius_pixels.min(MOST_BLUR_PIXELS));
        self.by_lines(|line| blurred(line, &bell))
    }

    /// The smallest area that holds every pixel above `threshold`; `None` when there is none.
    pub fn bounding_box(&self, threshold: u8) -> Option<Area> {
        self.check().ok()?;
        let rows = || self.pixels.chunks_exact(self.width as usize);
        let white = |pixel: &u8| *pixel > threshold;
        let top = rows().position(|row| row.iter().any(white))?;
        let bottom = rows().rposition(|row| row.iter().any(white))?;
        let left = rows().filter_map(|row| row.iter().position(white)).min()?;
        let right = rows().filter_map(|row| row.iter().rposition(white)).max()?;
        Some(Area {
            left: left as u32,
            top: top as u32,
            width: (right - left + 1) as u32,
            height: (bottom - top + 1) as u32,
        })
    }

    /// What `line` makes of every row, and then of every column of that.
    fn by_lines(&self, line: impl Fn(&[u8]) -> Vec<u8>) -> Gray {
        let turned = |mask: &Gray| -> Gray {
            let (width, height) = (mask.width as usize, mask.height as usize);
            let mut pixels = vec![0; mask.pixels.len()];
            for (y, row) in mask.pixels.chunks_exact(width).enumerate() {
                for (x, pixel) in line(row).into_iter().enumerate() {
                    pixels[x * height + y] = pixel;
                }
            }
            Gray {
                width: mask.height,
                height: mask.width,
                pixels,
            }
        };
        turned(&turned(self))
    }
}

/// The largest value within `reach` of each place. Three looks at each place, however far the reach: of two running
/// maxima over blocks as long as the window, one from the left and one from the right, the larger is the window's
/// (van Herk 1992; Gil and Werman 1993).
fn largest_near(line: &[u8], reach: usize) -> Vec<u8> {
    let reach = reach.min(line.len());
    let window = 2 * reach + 1;
    // Black to both sides never wins.
    let mut from_left = vec![0; reach];
    from_left.extend_from_slice(line);
    from_left.resize((line.len() + 2 * reach).next_multiple_of(window), 0);
    let mut from_right = from_left.clone();
    for block in from_left.chunks_exact_mut(window) {
        for at in 1..window {
            block[at] = block[at].max(block[at - 1]);
        }
    }
    for block in from_right.chunks_exact_mut(window) {
        for at in (1..window).rev() {
            block[at - 1] = block[at - 1].max(block[at]);
        }
    }
    let ends = from_left.iter().skip(window - 1);
    from_right
        .iter()
        .zip(ends)
        .map(|(begin, end)| *begin.max(end))
        .take(line.len())
        .collect()
}

/// The weights of a Gaussian; they add up to 1.
fn bell(deviation_pixels: f32) -> Vec<f32> {
    let reach = (deviation_pixels * BLUR_REACH + 0.5).floor() as i32;
    let weight = |at: i32| (-0.5 * (at as f32 / deviation_pixels).powi(2)).exp();
    let weights: Vec<f32> = (-reach..=reach).map(weight).collect();
    let sum: f32 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

fn blurred(line: &[u8], bell: &[f32]) -> Vec<u8> {
    let reach = bell.len() / 2;
    let last = line.len().saturating_sub(1);
    let near: Vec<f32> = (0..line.len() + 2 * reach)
        .map(|at| f32::from(line[at.saturating_sub(reach).min(last)]))
        .collect();
    let mut sums = vec![0.5; line.len()];
    for (at, weight) in bell.iter().enumerate() {
        for (sum, value) in sums.iter_mut().zip(&near[at..]) {
            *sum += weight * value;
        }
    }
    sums.into_iter().map(|sum| sum as u8).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A mask that is white in an area.
    pub(crate) fn white_in(width: u32, height: u32, area: Area) -> Gray {
        let inside = |x: u32, y: u32| {
            (area.left..area.left + area.width).contains(&x)
                && (area.top..area.top + area.height).contains(&y)
        };
        let pixels = (0..height)
            .flat_map(|y| (0..width).map(move |x| if inside(x, y) { 255 } else { 0 }))
            .collect();
        Gray::new(width, height, pixels).unwrap()
    }

    fn area(left: u32, top: u32, width: u32, height: u32) -> Area {
        Area {
            left,
            top,
            width,
            height,
        }
    }

    /// The same by looking at every neighbour.
    fn dilated_slowly(mask: &Gray, reach: i32) -> Vec<u8> {
        let (width, height) = (mask.width as i32, mask.height as i32);
        let mut pixels = Vec::new();
        for y in 0..height {
            for x in 0..width {
                let near = (-reach..=reach)
                    .flat_map(|dy| (-reach..=reach).map(move |dx| (x + dx, y + dy)))
                    .filter(|(x, y)| (0..width).contains(x) && (0..height).contains(y))
                    .map(|(x, y)| mask.pixels[(y * width + x) as usize]);
                pixels.push(near.max().unwrap());
            }
        }
        pixels
    }

    fn any_mask() -> impl Strategy<Value = Gray> {
        (1u32..9, 1u32..9).prop_flat_map(|(width, height)| {
            prop::collection::vec(any::<u8>(), (width * height) as usize)
                .prop_map(move |pixels| Gray::new(width, height, pixels).unwrap())
        })
    }

    #[test]
    fn a_square_grows_and_shrinks_by_the_pixels_asked_for() {
        let mask = white_in(20, 16, area(5, 6, 4, 3));
        assert_eq!(mask.dilate(2), white_in(20, 16, area(3, 4, 8, 7)));
        assert_eq!(mask.dilate(-1), white_in(20, 16, area(6, 7, 2, 1)));
        assert_eq!(mask.dilate(-2).bounding_box(0), None);
        assert_eq!(mask.dilate(i32::MAX), white_in(20, 16, area(0, 0, 20, 16)));
    }

    #[test]
    fn a_mask_that_touches_the_edge_does_not_shrink_from_it() {
        let mask = white_in(8, 8, area(0, 0, 8, 4));
        assert_eq!(mask.dilate(-1), white_in(8, 8, area(0, 0, 8, 3)));
        assert_eq!(
            white_in(8, 8, area(0, 0, 8, 8))
                .dilate(i32::MIN)
                .bounding_box(254),
            Some(area(0, 0, 8, 8))
        );
    }

    #[test]
    fn blur_keeps_the_sum_and_softens_the_edge_evenly() {
        let mask = white_in(64, 64, area(24, 24, 16, 16));
        let soft = mask.blur(3.0);
        let sum = |mask: &Gray| mask.pixels.iter().map(|pixel| f64::from(*pixel)).sum::<f64>();
        assert!((sum(&soft) / sum(&mask) - 1.0).abs() < 0.01);
        let row: Vec<u8> = soft.pixels[32 * 64..33 * 64].to_vec();
        assert!(row[..32].is_sorted() && row[32..].is_sorted_by(|a, b| a >= b));
        assert!((0..32).all(|x| row[x] == row[63 - x]));
        assert!(row[23] > 60 && row[24] < 200 && row[14] == 0);
    }

    #[test]
    fn a_blur_of_no_pixels_changes_nothing() {
        let mask = white_in(9, 5, area(2, 2, 3, 1));
        for radius_pixels in [0.0, -1.0, f32::NAN, f32::NEG_INFINITY] {
            assert_eq!(mask.blur(radius_pixels), mask);
        }
        assert_eq!(
            white_in(9, 5, area(0, 0, 9, 5)).blur(f32::INFINITY),
            white_in(9, 5, area(0, 0, 9, 5))
        );
    }

    #[test]
    fn a_bounding_box_counts_what_is_above_the_threshold() {
        let mut mask = white_in(10, 10, area(4, 5, 2, 3));
        mask.pixels[0] = 20;
        assert_eq!(mask.bounding_box(20), Some(area(4, 5, 2, 3)));
        assert_eq!(mask.bounding_box(19), Some(area(0, 0, 6, 8)));
        assert_eq!(mask.bounding_box(255), None);
    }

    #[test]
    fn a_mask_whose_bytes_do_not_fit_is_left_alone() {
        let broken = Gray {
            width: 9,
            height: 9,
            pixels: vec![1],
        };
        assert_eq!(broken.dilate(3), broken);
        assert_eq!(broken.blur(3.0), broken);
        assert_eq!(broken.bounding_box(0), None);
    }

    proptest! {
        #[test]
        fn dilate_is_the_largest_of_the_neighbours(mask in any_mask(), reach in 0i32..12) {
            prop_assert_eq!(mask.dilate(reach).pixels, dilated_slowly(&mask, reach));
        }

        #[test]
        fn invert_twice_is_nothing(mask in any_mask()) {
            prop_assert_eq!(mask.invert().invert(), mask);
        }

        #[test]
        fn blur_stays_between_darkest_and_brightest(mask in any_mask(), radius_pixels in 0.0f32..20.0) {
            let (darkest, brightest) = (*mask.pixels.iter().min().unwrap(), *mask.pixels.iter().max().unwrap());
            prop_assert!(mask.blur(radius_pixels).pixels.iter().all(|pixel| (darkest..=brightest).contains(pixel)));
        }
    }
}
