//! How a device holds a model and runs a job with it, and what that takes of it. Pure arithmetic.
//!
//! Models are held whole, where there is room. Else their components wait in host memory and come one by one; else the
//! blocks of a component do. Jobs are run whole likewise; else their pictures go through the VAE one by one, or in tiles,
//! and attention is computed in slices. Each is slower than the one before, and still a picture where there was none.

use calotype_protocol::{Offload, VaePlan};

/// The largest component of a diffusion model, in per cent of all of it: 81 of Stable Diffusion 1.5, 74 of XL, 58 of FLUX.
/// With a ControlNet, which computes in the same steps as the denoiser: 86 of 1.5 and its ControlNet.
const COMPONENT_PERCENT: u64 = 87;
/// What blocks that come one by one take at a time, with the next one on its way.
const BLOCKS_PERCENT: u64 = 20;

/// The number type of a device's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// 4 bytes an element.
    Single,
    /// 2 bytes an element.
    Half,
}

impl Precision {
    /// What a kind of device computes fastest in.
    pub fn of(device_kind: &str) -> Self {
        match device_kind {
            "cpu" => Self::Single,
            _ => Self::Half,
        }
    }

    /// Of one element.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Single => 4,
            Self::Half => 2,
        }
    }
}

const ATTENTION_SLICING: &str = "attention_slicing";

/// How the plans of a worker and of a result call it.
fn offload_label(offload: Offload) -> Option<&'static str> {
    match offload {
        Offload::None => None,
        Offload::Model => Some("offload_model"),
        Offload::Sequential => Some("offload_sequential"),
    }
}

/// Likewise.
fn vae_label(vae: VaePlan) -> Option<&'static str> {
    match vae {
        VaePlan::Whole => None,
        VaePlan::Slicing => Some("vae_slicing"),
        VaePlan::Tiling => Some("vae_tiling"),
    }
}

/// What of a job is done in pieces; its working set depends on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Slicing {
    /// How its pictures go through the VAE.
    pub vae: VaePlan,
    /// Whether attention is computed in slices.
    pub attention: bool,
}

impl Slicing {
    /// The fastest first.
    pub const ALL: [Self; 6] = [
        Self::of(VaePlan::Whole, false),
        Self::of(VaePlan::Slicing, false),
        Self::of(VaePlan::Tiling, false),
        Self::of(VaePlan::Whole, true),
        Self::of(VaePlan::Slicing, true),
        Self::of(VaePlan::Tiling, true),
    ];

    const fn of(vae: VaePlan, attention: bool) -> Self {
        Self { vae, attention }
    }

    /// Its words of a result's plan.
    pub fn labels(self) -> impl Iterator<Item = &'static str> {
        vae_label(self.vae)
            .into_iter()
            .chain(self.attention.then_some(ATTENTION_SLICING))
    }

    /// Its place in `ALL`.
    pub fn index(self) -> usize {
        let vae = match self.vae {
            VaePlan::Whole => 0,
            VaePlan::Slicing => 1,
            VaePlan::Tiling => 2,
        };
        if self.attention { vae + 3 } else { vae }
    }
}

/// How models are held, and a job is run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    /// What of its models waits in host memory.
    pub offload: Offload,
    /// What of it is done in pieces.
    pub slicing: Slicing,
}

impl MemoryPlan {
    /// Grows with what is given up.
    pub fn cost(self) -> usize {
        let offload = match self.offload {
            Offload::None => 0,
            Offload::Model => 1,
            Offload::Sequential => 2,
        };
        offload * Slicing::ALL.len() + self.slicing.index()
    }

    /// Its words of a result's plan.
    pub fn labels(self) -> impl Iterator<Item = &'static str> {
        offload_label(self.offload)
            .into_iter()
            .chain(self.slicing.labels())
    }
}

/// How a model was loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Residency {
    /// What of it waits in host memory.
    pub offload: Offload,
    /// Whether it computes attention in slices.
    pub attention_slicing: bool,
}

impl From<MemoryPlan> for Residency {
    fn from(way: MemoryPlan) -> Self {
        Self {
            offload: way.offload,
            attention_slicing: way.slicing.attention,
        }
    }
}

impl Residency {
    /// Whether a job that goes this way finds more on the device than was counted.
    pub fn is_too_large_for(self, way: MemoryPlan) -> bool {
        let smaller = on_device_bytes(100, way.offload) < on_device_bytes(100, self.offload);
        smaller || self.holds_scores(way)
    }

    /// Whether its attention takes more than was counted.
    pub fn holds_scores(self, way: MemoryPlan) -> bool {
        way.slicing.attention && !self.attention_slicing
    }
}

/// What a worker can do to hold more than fits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryFeatures {
    offload: bool,
    vae_slicing: bool,
    vae_tiling: bool,
    attention_slicing: bool,
}

impl MemoryFeatures {
    /// By the plans that it said it can follow.
    pub fn of(plans: &[String]) -> Self {
        let can = |word: Option<&str>| word.is_some_and(|word| plans.iter().any(|own| own == word));
        let offloads = [Offload::Model, Offload::Sequential];
        Self {
            offload: offloads.into_iter().all(|way| can(offload_label(way))),
            vae_slicing: can(vae_label(VaePlan::Slicing)),
            vae_tiling: can(vae_label(VaePlan::Tiling)),
            attention_slicing: can(Some(ATTENTION_SLICING)),
        }
    }

    /// Those that it can go, the fastest first.
    fn all(self) -> impl Iterator<Item = MemoryPlan> {
        let offloads = [Offload::None, Offload::Model, Offload::Sequential];
        let offloads = offloads
            .into_iter()
            .filter(move |way| self.offload || *way == Offload::None);
        offloads.flat_map(move |offload| {
            let slicing = Slicing::ALL.into_iter().filter(move |slicing| self.can(*slicing));
            slicing.map(move |slicing| MemoryPlan { offload, slicing })
        })
    }

    fn can(self, slicing: Slicing) -> bool {
        let vae = match slicing.vae {
            VaePlan::Whole => true,
            VaePlan::Slicing => self.vae_slicing,
            VaePlan::Tiling => self.vae_tiling,
        };
        vae && (self.attention_slicing || !slicing.attention)
    }

    /// The fastest way to hold `weights_bytes`, and the `changed_bytes` of them that LoRAs change, beside what
    /// `working_bytes` says of a job run in pieces. Where none fits the budget: the bytes of the way that takes least.
    pub fn fastest_fit(
        self,
        weights_bytes: u64,
        lora_bytes: u64,
        working_bytes: impl Fn(Slicing) -> u64,
        budget_bytes: u64,
    ) -> Result<MemoryPlan, u64> {
        let mut least_bytes = u64::MAX;
        for way in self.all() {
            let taken_bytes = on_device_bytes(weights_bytes, way.offload)
                .saturating_add(lora_on_device_bytes(lora_bytes, way.offload))
                .saturating_add(working_bytes(way.slicing));
            if taken_bytes <= budget_bytes {
                return Ok(way);
            }
            least_bytes = least_bytes.min(taken_bytes);
        }
        Err(least_bytes)
    }
}

/// What of the weights lies on the device.
pub fn on_device_bytes(weights_bytes: u64, way: Offload) -> u64 {
    let percent = match way {
        Offload::None => 100,
        Offload::Model => COMPONENT_PERCENT,
        Offload::Sequential => BLOCKS_PERCENT,
    };
    weights_bytes / 100 * percent + weights_bytes % 100 * percent / 100
}

/// What of the weights that LoRAs have changed lies there beside the plain ones: where those wait in host memory, so do
/// these, and come in their place.
pub fn lora_on_device_bytes(lora_bytes: u64, way: Offload) -> u64 {
    match way {
        Offload::None => lora_bytes,
        Offload::Model | Offload::Sequential => 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OFFLOADS: [&str; 2] = ["offload_model", "offload_sequential"];

    fn ways(plans: &[&str]) -> MemoryFeatures {
        let plans: Vec<String> = plans.iter().map(|plan| (*plan).to_owned()).collect();
        MemoryFeatures::of(&plans)
    }

    #[test]
    fn each_of_the_pieces_knows_its_place() {
        for (index, slicing) in Slicing::ALL.into_iter().enumerate() {
            assert_eq!(slicing.index(), index);
        }
    }

    #[test]
    fn a_model_is_held_in_the_fastest_way_that_fits() {
        for (budget_bytes, plans, expected) in [
            (110, &OFFLOADS[..], Ok(Offload::None)),
            (100, &OFFLOADS, Ok(Offload::Model)),
            (94, &OFFLOADS, Ok(Offload::Sequential)),
            (29, &OFFLOADS, Err(30)),
            (109, &[], Err(110)),
        ] {
            let way = ways(plans).fastest_fit(100, 0, |_| 10, budget_bytes);
            assert_eq!(way.map(|way| way.offload), expected, "{budget_bytes}");
        }
    }

    #[test]
    fn what_loras_change_counts_where_the_model_is_whole_and_waits_with_it_elsewhere() {
        let way = |budget_bytes| {
            ways(&OFFLOADS)
                .fastest_fit(100, 40, |_| 10, budget_bytes)
                .unwrap()
                .offload
        };
        assert_eq!(
            [way(150), way(149), way(97), way(96)],
            [Offload::None, Offload::Model, Offload::Model, Offload::Sequential]
        );
    }

    #[test]
    fn a_job_is_done_in_pieces_before_its_model_waits_in_host_memory_and_whole_where_that_does_not_help() {
        let working = |slicing: Slicing| {
            let decode = match slicing.vae {
                VaePlan::Whole => 80,
                VaePlan::Slicing => 40,
                VaePlan::Tiling => 5,
            };
            decode.max(if slicing.attention { 3 } else { 30 })
        };
        let plans = [
            "offload_model",
            "offload_sequential",
            "vae_slicing",
            "vae_tiling",
            "attention_slicing",
        ];
        for (budget_bytes, plans, expected) in [
            (180, &plans[..], "None Whole false"),
            (140, &plans, "None Slicing false"),
            (130, &plans, "None Tiling false"),
            (129, &plans, "None Tiling true"),
            (104, &plans, "Model Tiling true"),
            // Without slices of attention tiles alone do not make it small enough for more than its components.
            (117, &plans[..4], "Model Tiling false"),
            (129, &plans[..2], "Sequential Whole false"),
        ] {
            let way = ways(plans).fastest_fit(100, 0, working, budget_bytes).unwrap();
            let told = format!(
                "{:?} {:?} {}",
                way.offload, way.slicing.vae, way.slicing.attention
            );
            assert_eq!(told, expected, "{budget_bytes}");
        }
    }

    proptest! {
        #[test]
        fn what_is_held_fits_and_never_takes_more_than_the_whole(
            weights in any::<u64>(), need in any::<u64>(), budget in any::<u64>(), offloads in any::<bool>(),
            tiles in any::<bool>(),
        ) {
            let ways = MemoryFeatures { offload: offloads, vae_tiling: tiles, ..MemoryFeatures::default() };
            let working = |slicing: Slicing| if slicing.vae == VaePlan::Tiling { need / 2 } else { need };
            match ways.fastest_fit(weights, 0, working, budget) {
                Ok(way) => {
                    let taken = on_device_bytes(weights, way.offload);
                    prop_assert!(taken <= weights);
                    prop_assert!(taken.saturating_add(working(way.slicing)) <= budget);
                    prop_assert!(offloads || way.offload == Offload::None);
                    prop_assert!(tiles || way.slicing == Slicing::default());
                }
                Err(least) => prop_assert!(least > budget && least <= weights.saturating_add(need)),
            }
        }
    }
}
