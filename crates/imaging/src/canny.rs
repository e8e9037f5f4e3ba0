//! The edges of a picture (Canny, "A Computational Approach to Edge Detection", 1986), white on black.
//!
//! The edges are those that ControlNets for edges were trained on: pixel for pixel those of OpenCV's `Canny` with its
//! defaults. So the picture is not blurred first, the gradient is Sobel's over three pixels, of the channel in which it
//! is largest, and its size is the sum of both directions.

use crate::Rgb;

/// Tangent of 22.5°, in parts of 2^15.
const TANGENT: i64 = 13573;
const ONE: i64 = 1 << 15;

/// The gradient at one pixel.
#[derive(Clone, Copy, Default)]
struct Gradient {
    across: i32,
    down: i32,
}

impl Gradient {
    fn size(self) -> i32 {
        self.across.abs() + self.down.abs()
    }
}

/// Edges whose gradient is above `high` somewhere, followed as long as it stays above `low`. The usual thresholds are
/// 100 and 200. A picture whose bytes do not fit its size comes back as it is.
pub fn canny(picture: &Rgb, low: u8, high: u8) -> Rgb {
    if picture.check().is_err() {
        return picture.clone();
    }
    let (low, high) = (i32::from(low.min(high)), i32::from(low.max(high)));
    let (width, height) = (picture.width as usize, picture.height as usize);
    let gradients = gradients(picture);
    let size = |x: Option<usize>, y: Option<usize>| match (x, y) {
        (Some(x), Some(y)) if x < width && y < height => gradients[y * width + x].size(),
        _ => 0,
    };

    let mut ridge = vec![false; width * height];
    let mut followed = Vec::new();
    for y in 0..height {
        for x in 0..width {
            let at = y * width + x;
            let own = gradients[at].size();
            if own <= low {
                continue;
            }
            let (dx, dy) = along(gradients[at]);
            let before = size(x.checked_add_signed(-dx), y.checked_add_signed(-dy));
            let after = size(x.checked_add_signed(dx), y.checked_add_signed(dy));
            // Of two equal neighbours the first one stays, but for a slanted edge neither.
            let slanted = dx != 0 && dy != 0;
            if own > before && (own > after || (own == after && !slanted)) {
                ridge[at] = true;
                if own > high {
                    followed.push(at);
                }
            }
        }
    }

    let mut pixels = vec![0; width * height * 3];
    while let Some(at) = followed.pop() {
        // Taken once: a ridge that was drawn is none any more.
        if !std::mem::take(&mut ridge[at]) {
            continue;
        }
        pixels[at * 3..at * 3 + 3].fill(255);
        let (x, y) = (at % width, at / width);
        for near_y in y.saturating_sub(1)..=(y + 1).min(height - 1) {
            let row = near_y * width;
            followed
                .extend((row + x.saturating_sub(1)..=row + (x + 1).min(width - 1)).filter(|at| ridge[*at]));
        }
    }
    Rgb {
        width: picture.width,
        height: picture.height,
        pixels,
    }
}

/// The neighbour towards which the gradient points, to the nearest of eight directions, always one that comes later.
fn along(gradient: Gradient) -> (isize, isize) {
    let across = i64::from(gradient.across.abs());
    let down = i64::from(gradient.down.abs()) * ONE;
    // The tangent of 67.5° is 2 more than that of 22.5°.
    if down < across * TANGENT {
        (1, 0)
    } else if down > across * (TANGENT + 2 * ONE) {
        (0, 1)
    } else if (gradient.across < 0) != (gradient.down < 0) {
        (-1, 1)
    } else {
        (1, 1)
    }
}

/// Sobel's gradient of every pixel; beyond its edges the picture goes on as it ends.
fn gradients(picture: &Rgb) -> Vec<Gradient> {
    let (width, height) = (picture.width as usize, picture.height as usize);
    let mut gradients = Vec::with_capacity(width * height);
    for y in 0..height {
        let rows = [y.saturating_sub(1), y, (y + 1).min(height - 1)].map(|row| row * width);
        for x in 0..width {
            let columns = [x.saturating_sub(1), x, (x + 1).min(width - 1)];
            let of_channel = |channel: usize| {
                let [above, own, below] = rows
                    .map(|row| columns.map(|column| i32::from(picture.pixels[(row + column) * 3 + channel])));
                let smooth = |values: [i32; 3]| values[0] + 2 * values[1] + values[2];
                Gradient {
                    across: smooth([above[2], own[2], below[2]]) - smooth([above[0], own[0], below[0]]),
                    down: smooth(below) - smooth(above),
                }
            };
            let largest = (1..3).map(of_channel).fold(of_channel(0), |largest, next| {
                if next.size() > largest.size() {
                    next
                } else {
                    largest
                }
            });
            gradients.push(largest);
        }
    }
    gradients
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::tests::noise;

    /// A bright disc on a ramp, with a faint slanted line that is below the thresholds.
    fn disc() -> Rgb {
        let pixel = |x: u32, y: u32| {
            let inside = x.abs_diff(9).pow(2) + y.abs_diff(8).pow(2) <= 25;
            let red = if inside { 200 } else { 40 };
            let blue = if x + y > 30 { 90 } else { 60 };
            [red, 40 + 4 * x as u8, blue]
        };
        let pixels = (0..18)
            .flat_map(|y| (0..28).flat_map(move |x| pixel(x, y)))
            .collect();
        Rgb::new(28, 18, pixels).unwrap()
    }

    fn drawn(picture: &Rgb) -> Vec<String> {
        let letter = |pixel: &[u8]| if pixel == [255; 3] { '#' } else { '.' };
        picture
            .pixels
            .chunks_exact(picture.width as usize * 3)
            .map(|row| row.chunks_exact(3).map(letter).collect())
            .collect()
    }

    /// FNV-1a of one channel.
    fn hash(picture: &Rgb) -> u64 {
        let channel = picture.pixels.iter().step_by(3);
        channel.fold(0xcbf2_9ce4_8422_2325, |hash, pixel| {
            (hash ^ u64::from(*pixel)).wrapping_mul(0x0100_0000_01b3)
        })
    }

    #[test]
    fn the_edge_of_a_disc_is_a_closed_line_of_one_pixel() {
        let edges = [
            ".......#####................",
            ".....##.....##..............",
            ".....#.......#..............",
            "....#........#..............",
            "....#.........#.............",
            "....#.........#.............",
            "....#.........#.............",
            "....#........#..............",
            ".....#.......#..............",
            ".....###...###..............",
            "........###.................",
        ];
        let found = drawn(&canny(&disc(), 100, 200));
        assert_eq!(found[3..14], edges);
        assert!(
            [&found[..3], &found[14..]]
                .concat()
                .iter()
                .all(|row| !row.contains('#'))
        );
    }

    #[test]
    fn edges_of_noise_are_those_of_opencv() {
        // Of `cv2.Canny` of OpenCV 5.0.0; the pictures are darkened by a shift to bring them near the thresholds.
        for (shift, low, high, expected) in [
            (0, 100, 200, 0xe5d5_bafb_2ff3_ea10),
            (3, 40, 90, 0x475f_d492_03eb_75d1),
            (3, 60, 60, 0xbe80_7055_c0f7_17e7),
            (2, 255, 200, 0x3782_60b6_68e2_e337),
        ] {
            let mut picture = noise(97, 61, 9);
            picture.pixels.iter_mut().for_each(|pixel| *pixel >>= shift);
            assert_eq!(
                hash(&canny(&picture, low, high)),
                expected,
                "{shift} {low} {high}"
            );
        }
    }

    #[test]
    fn flat_small_and_broken_pictures_have_no_edges() {
        for (width, height) in [(1, 1), (1, 9), (9, 1), (7, 7)] {
            let flat = Rgb::new(width, height, vec![90; (width * height * 3) as usize]).unwrap();
            assert!(canny(&flat, 0, 0).pixels.iter().all(|pixel| *pixel == 0));
        }
        let broken = Rgb {
            width: 9,
            height: 9,
            pixels: vec![1],
        };
        assert_eq!(canny(&broken, 100, 200), broken);
    }
}
