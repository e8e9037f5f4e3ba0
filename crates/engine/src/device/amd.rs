//! AMD cards that compute, as the kernel's driver amdgpu shows them below `/sys`: those of ROCm's topology (`class/kfd`),
//! in its order, which is the order of HIP and torch. Their memory and sensors are those of the render node.
//!
//! Source: Linux, `Documentation/gpu/amdgpu/driver-misc.rst` and `thermal.rst`; ROCm, `libhsakmt/src/topology.c`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::sensors::ReadSensors;
use super::{Device, Reading};
use crate::clock::now_ms;

/// A processor's own graphics unit has less memory set aside, and draws nothing in it.
const LEAST_BYTES: u64 = 1 << 30;

/// Cards below the root of the system's files; none where there is no driver or card.
pub(super) fn cards(sys: &Path) -> Vec<Device> {
    let nodes = fs::read_dir(sys.join("class/kfd/kfd/topology/nodes"));
    let numbered = nodes.into_iter().flatten().flatten().filter_map(|node| {
        let number: u32 = node.file_name().to_str()?.parse().ok()?;
        Some((number, node.path()))
    });
    let nodes: BTreeMap<u32, PathBuf> = numbered.collect();
    let driver = words(&sys.join("module/amdgpu/version")).map(|version| format!("amdgpu {version}"));
    let computing = nodes.values().filter_map(|node| Node::read(node));
    computing
        .enumerate()
        .filter_map(|(index, node)| card(index, &node, sys, driver.clone()))
        .filter(|card| card.total_bytes >= LEAST_BYTES)
        .collect()
}

/// What the topology says of a node with compute units; processors are nodes too, without any.
struct Node {
    render_minor: u32,
    unique_id: u64,
}

impl Node {
    fn read(path: &Path) -> Option<Self> {
        let properties = words(&path.join("properties"))?;
        let of = |name: &str| {
            let mut lines = properties.lines().filter_map(|line| line.split_once(' '));
            lines.find(|(known, _)| *known == name)?.1.trim().parse().ok()
        };
        let units: u64 = of("simd_count")?;
        (units > 0).then_some(Self {
            render_minor: u32::try_from(of("drm_render_minor")?).ok()?,
            unique_id: of("unique_id").unwrap_or(0),
        })
    }
}

fn card(index: usize, node: &Node, sys: &Path, driver: Option<String>) -> Option<Device> {
    let files = sys.join(format!("class/drm/renderD{}/device", node.render_minor));
    let total_bytes: u64 = number(&files.join("mem_info_vram_total"))?;
    let used_bytes: Option<u64> = number(&files.join("mem_info_vram_used"));
    let sensors = fs::read_dir(files.join("hwmon")).ok();
    let sensors = sensors
        .and_then(|mut found| found.next()?.ok())
        .map(|found| found.path());
    let sensor = |name: &str| number::<u32>(&sensors.as_ref()?.join(name));
    let hertz = |name: &str| {
        let hertz: u64 = number(&sensors.as_ref()?.join(name))?;
        u32::try_from(hertz / 1_000_000).ok()
    };
    let named = words(&files.join("product_name")).filter(|name| !name.is_empty());
    Some(Device {
        id: format!("rocm{index}"),
        kind: "rocm".into(),
        name: named.unwrap_or_else(|| "AMD card".into()),
        vendor: Some("AMD".into()),
        uuid: (node.unique_id > 0).then(|| format!("GPU-{:016x}", node.unique_id)),
        driver,
        total_bytes,
        // A card that does not tell what is used tells nothing of what is free.
        free_bytes: used_bytes.map(|used_bytes| total_bytes.saturating_sub(used_bytes)),
        utilisation_percent: number(&files.join("gpu_busy_percent")),
        // Thousandths of a degree, millionths of a watt.
        temperature_c: sensor("temp1_input").map(|thousandths| thousandths / 1000),
        power_mw: sensor("power1_average")
            .or_else(|| sensor("power1_input"))
            .map(|millionths| millionths / 1000),
        // Hertz.
        clock_mhz: hertz("freq1_input"),
        memory_clock_mhz: hertz("freq2_input"),
        throttle_reasons: Vec::new(),
        read_at_ms: Some(now_ms()),
    })
}

/// Reads the cards that were found at the start.
pub(super) struct AmdSensors {
    sys: PathBuf,
    cards: Vec<Device>,
}

impl AmdSensors {
    pub(super) fn new(sys: PathBuf, cards: Vec<Device>) -> Self {
        Self { sys, cards }
    }
}

impl ReadSensors for AmdSensors {
    fn read(&mut self) -> BTreeMap<String, Reading> {
        let now = cards(&self.sys);
        // Another card may have come in the place of one that was taken out.
        let is_known = |found: &&Device| {
            let mut known = self.cards.iter();
            known.any(|card| card.id == found.id && card.uuid == found.uuid)
        };
        let found = now.iter().filter(is_known);
        found
            .filter_map(|card| Some((card.id.clone(), card.reading()?)))
            .collect()
    }
}

fn words(file: &Path) -> Option<String> {
    fs::read_to_string(file).ok().map(|text| text.trim().to_owned())
}

fn number<T: FromStr>(file: &Path) -> Option<T> {
    words(file)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, files: &[(&str, &str)]) {
        for (file, text) in files {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    #[test]
    fn cards_are_counted_as_torch_counts_them_and_processors_are_none() {
        let sys = tempfile::tempdir().unwrap();
        let nodes = "class/kfd/kfd/topology/nodes";
        write(
            sys.path(),
            &[
                (
                    &format!("{nodes}/0/properties"),
                    "cpu_cores_count 32\nsimd_count 0\ndrm_render_minor 0\n",
                ),
                (
                    &format!("{nodes}/1/properties"),
                    "cpu_cores_count 0\nsimd_count 192\ndrm_render_minor 129\nunique_id 255\n",
                ),
                (
                    &format!("{nodes}/10/properties"),
                    "simd_count 64\ndrm_render_minor 128\n",
                ),
                // A processor's own unit, which keeps its number; and a node that this user may not read.
                (
                    &format!("{nodes}/2/properties"),
                    "cpu_cores_count 0\nsimd_count 4\ndrm_render_minor 130\n",
                ),
                ("class/drm/renderD130/device/mem_info_vram_total", "536870912\n"),
                (&format!("{nodes}/11/name"), ""),
                ("class/drm/renderD129/device/mem_info_vram_total", "25753026560\n"),
                ("class/drm/renderD129/device/mem_info_vram_used", "1073741824\n"),
                ("class/drm/renderD129/device/product_name", "Radeon RX 7900 XTX\n"),
                ("class/drm/renderD129/device/gpu_busy_percent", "7\n"),
                ("class/drm/renderD129/device/hwmon/hwmon3/temp1_input", "41000\n"),
                (
                    "class/drm/renderD129/device/hwmon/hwmon3/power1_average",
                    "16000000\n",
                ),
                (
                    "class/drm/renderD129/device/hwmon/hwmon3/freq1_input",
                    "2304000000\n",
                ),
                ("class/drm/renderD128/device/mem_info_vram_total", "8573157376\n"),
                ("module/amdgpu/version", "6.10.5\n"),
            ],
        );
        let found = cards(sys.path());
        assert_eq!(found.len(), 2, "{found:?}");
        let first = &found[0];
        assert_eq!((first.id.as_str(), first.kind.as_str()), ("rocm0", "rocm"));
        assert_eq!(first.name, "Radeon RX 7900 XTX");
        assert_eq!(first.uuid.as_deref(), Some("GPU-00000000000000ff"));
        assert_eq!(first.driver.as_deref(), Some("amdgpu 6.10.5"));
        assert_eq!(
            (first.total_bytes, first.free_bytes),
            (25_753_026_560, Some(24_679_284_736))
        );
        assert_eq!(
            (first.utilisation_percent, first.temperature_c),
            (Some(7), Some(41))
        );
        assert_eq!(first.power_mw, Some(16_000));
        assert_eq!((first.clock_mhz, first.memory_clock_mhz), (Some(2304), None));
        let second = &found[1];
        assert_eq!((second.id.as_str(), second.name.as_str()), ("rocm2", "AMD card"));
        assert_eq!((second.uuid.as_ref(), second.power_mw), (None, None));
        assert_eq!(second.free_bytes, None, "what it does not tell is not guessed");
        // A later reading has the later figures, of the cards that were there.
        let mut sensors = AmdSensors::new(sys.path().to_owned(), vec![first.clone()]);
        write(
            sys.path(),
            &[("class/drm/renderD129/device/mem_info_vram_used", "2147483648\n")],
        );
        let readings = sensors.read();
        assert_eq!(readings.keys().collect::<Vec<_>>(), ["rocm0"]);
        assert_eq!(readings["rocm0"].free_bytes, Some(23_605_542_912));
    }

    #[test]
    fn where_there_is_no_driver_there_are_no_cards() {
        let sys = tempfile::tempdir().unwrap();
        assert!(cards(sys.path()).is_empty());
    }
}
