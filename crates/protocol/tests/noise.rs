//! The noise against golden values that numpy computed (`training/noise.py`), bit for bit.

use calotype_protocol::noise::{normal, philox4x32};

#[test]
fn noise_equals_numpy_bit_for_bit() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../schema/golden/noise.json");
    let golden: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() >= 15);
    for case in cases {
        let seed: u64 = case["seed"].as_str().unwrap().parse().unwrap();
        let offset = u32::try_from(case["offset"].as_u64().unwrap()).unwrap();
        let bits = case["normal_bits"].as_array().unwrap();
        for (index, value) in normal(seed, offset, bits.len()).into_iter().enumerate() {
            let [g0, g1, _, _] = philox4x32([offset, 0, index as u32, 0], [seed as u32, (seed >> 32) as u32]);
            assert_eq!(Some(u64::from(g0)), case["g0"][index].as_u64());
            assert_eq!(Some(u64::from(g1)), case["g1"][index].as_u64());
            assert_eq!(
                u64::from(value.to_bits()),
                bits[index].as_u64().unwrap(),
                "seed {seed} offset {offset}"
            );
        }
    }
}
