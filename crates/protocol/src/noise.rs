//! Noise that needs no device: Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011)
//! and the Box–Muller transform, in the element order of CUDA's generator (what other tools call "NV" noise).
//!
//! The arithmetic between the integers and the final rounding to `f32` is done in `f64`, so that Rust and numpy agree
//! bit for bit although their `f32` logarithms and sines do not. Golden values: `schema/golden/noise.json`.

const ROUNDS: usize = 10;
const KEY_STEP: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// 2^-32 and 2 pi times it, as the `f32` constants of CUDA's headers.
const UNIT: f32 = 2.328_306_4e-10;
const TURN: f32 = 2.328_306_4e-10 * 6.283_185_5;

/// Offset of an image's initial noise.
pub const INITIAL: u32 = 0;

/// Offset of the noise of step `step`, counted from 0 over the whole schedule.
pub fn of_step(step: u32) -> u32 {
    step + 1
}

/// One block of the generator: four words from a counter and a key.
pub fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..ROUNDS {
        if round > 0 {
            key = [key[0].wrapping_add(KEY_STEP[0]), key[1].wrapping_add(KEY_STEP[1])];
        }
        let first = u64::from(counter[0]) * u64::from(MULTIPLIERS[0]);
        let second = u64::from(counter[2]) * u64::from(MULTIPLIERS[1]);
        counter = [
            (second >> 32) as u32 ^ counter[1] ^ key[0],
            second as u32,
            (first >> 32) as u32 ^ counter[3] ^ key[1],
            first as u32,
        ];
    }
    counter
}

/// Fills `out` with standard normal numbers. Element i depends only on (`seed`, `offset`, i).
pub fn fill_normal(seed: u64, offset: u32, out: &mut [f32]) {
    let key = [seed as u32, (seed >> 32) as u32];
    for (index, value) in out.iter_mut().enumerate() {
        let [first, second, _, _] = philox4x32([offset, 0, index as u32, 0], key);
        *value = box_muller(first, second);
    }
}

/// `count` standard normal numbers; see [`fill_normal`].
pub fn normal(seed: u64, offset: u32, count: usize) -> Vec<f32> {
    let mut out = vec![0.0; count];
    fill_normal(seed, offset, &mut out);
    out
}

fn box_muller(first: u32, second: u32) -> f32 {
    let unit = f64::from(UNIT);
    let turn = f64::from(TURN);
    let u = f64::from(first) * unit + unit / 2.0;
    let v = f64::from(second) * turn + turn / 2.0;
    ((-2.0 * u.ln()).sqrt() * v.sin()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of Random123 (kat_vectors, philox4x32 10).
    #[test]
    fn philox_gives_the_known_answers() {
        assert_eq!(
            philox4x32([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox4x32([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox4x32(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn numbers_are_finite_and_standard_normal() {
        let sample = normal(42, INITIAL, 100_000);
        let mean = sample.iter().map(|x| f64::from(*x)).sum::<f64>() / 1e5;
        let variance = sample.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / 1e5 - mean * mean;
        assert!(sample.iter().all(|x| x.is_finite()));
        assert!(
            mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02,
            "{mean} {variance}"
        );
    }

    #[test]
    fn a_longer_request_begins_with_the_shorter_one() {
        assert_eq!(normal(7, 3, 64)[..16], normal(7, 3, 16)[..]);
        assert_ne!(normal(7, 3, 16), normal(7, 4, 16));
        assert_ne!(normal(7, 3, 16), normal(8, 3, 16));
    }
}
