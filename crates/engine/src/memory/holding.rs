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
fn offload_word(offload: Offload) -> Option<&'static str> {
    match offload {
        Offload::None => None,
        Offload::Model => Some("offload_model"),
        Offload::Sequential => Some("offload_sequential"),
    }
}

/// Likewise.
fn vae_word(vae: VaePlan) -> Option<&'static str> {
    match vae {
        VaePlan::Whole => None,
        VaePlan::Slicing => Some("vae_slicing"),
        VaePlan::Tiling => Some("vae_tiling"),
    }
}

/// What of a job is done in pieces; its working set depends on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pieces {
    /// How its pictures go through the VAE.
    pub vae: VaePlan,
    /// Whether attention is computed in slices.
    pub attention: bool,
}

impl Pieces {
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
    pub fn words(self) -> impl Iterator<Item = &'static str> {
        vae_word(self.vae)
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
pub struct Way {
    /// What of its models waits in host memory.
    pub offload: Offload,
    /// What of it is done in pieces.
    pub pieces: Pieces,
}

impl Way {
    /// Grows with what is given up.
    pub fn cost(self) -> usize {
        let offload = match self.offload {
            Offload::None => 0,
            Offload::Model => 1,
            Offload::Sequential => 2,
        };
        offload * Pieces::ALL.len() + self.pieces.index()
    }

    /// Its words of a result's plan.
    pub fn words(self) -> impl Iterator<Item = &'static str> {
        offload_word(self.offload).into_iter().chain(self.pieces.words())
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

impl From<Way> for Residency {
    fn from(way: Way) -> Self {
        Self {
            offload: way.offload,
            attention_slicing: way.pieces.attention,
        }
    }
}

impl Residency {
    /// Whether a job that goes this way finds more on the device than was counted.
    pub fn is_too_large_for(self, way: Way) -> bool {
        let smaller = on_device_bytes(100, way.offload) < on_device_bytes(100, self.offload);
        smaller || self.holds_scores(way)
    }

    /// Whether its attention takes more than was counted.
    pub fn holds_scores(self, way: Way) -> bool {
        way.pieces.attention && !self.attention_slicing
    }
}

/// What a worker can do to hold more than fits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ways {
    offload: bool,
    vae_slicing: bool,
    vae_tiling: bool,
    attention_slicing: bool,
}

impl Ways {
    /// By the plans that it said it can follow.
    pub fn of(plans: &[String]) -> Self {
        let can = |word: Option<&str>| word.is_some_and(|word| plans.iter().any(|own| own == word));
        let offloads = [Offload::Model, Offload::Sequential];
        Self {
            offload: offloads.into_iter().all(|way| can(offload_word(way))),
            vae_slicing: can(vae_word(VaePlan::Slicing)),
            vae_tiling: can(vae_word(VaePlan::Tiling)),
            attention_slicing: can(Some(ATTENTION_SLICING)),
        }
    }

    /// Those that it can go, the fastest first.
    fn all(self) -> impl Iterator<Item = Way> {
        let offloads = [Offload::None, Offload::Model, Offload::Sequential];
        let offloads = offloads
            .into_iter()
            .filter(move |way| self.offload || *way == Offload::None);
        offloads.flat_map(move |offload| {
            let pieces = Pieces::ALL.into_iter().filter(move |pieces| self.can(*pieces));
            pieces.map(move |pieces| Way { offload, pieces })
        })
    }

    fn can(self, pieces: Pieces) -> bool {
        let vae = match pieces.vae {
            VaePlan::Whole => true,
            VaePlan::Slicing => self.vae_slicing,
            VaePlan::Tiling => self.vae_tiling,
        };
        vae && (self.attention_slicing || !pieces.attention)
    }

    /// The fastest way to hold `weights_bytes`, and the `changed_bytes` of them that LoRAs change, beside what
    /// `working_bytes` says of a job run in pieces. Where none fits the budget: the bytes of the way that takes least.
    pub fn held(
        self,
        weights_bytes: u64,
        changed_bytes: u64,
        working_bytes: impl Fn(Pieces) -> u64,
        budget_bytes: u64,
    ) -> Result<Way, u64> {
        let mut least_bytes = u64::MAX;
        for way in self.all() {
            let taken_bytes = on_device_bytes(weights_bytes, way.offload)
                .saturating_add(changed_on_device_bytes(changed_bytes, way.offload))
                .saturating_add(working_bytes(way.pieces));
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
pub fn changed_on_device_bytes(changed_bytes: u64, way: Offload) -> u64 {
    match way {
        Offload::None => changed_bytes,
        Offload::Model | Offload::Sequential => 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OFFLOADS: [&str; 2] = ["offload_model", "offload_sequential"];

    fn ways(plans: &[&str]) -> Ways {
        let plans: Vec<String> = plans.iter().map(|plan| (*plan).to_owned()).collect();
        Ways::of(&plans)
    }

    #[test]
    fn each_of_the_pieces_knows_its_place() {
        for (index, pieces) in Pieces::ALL.into_iter().enumerate() {
            assert_eq!(pieces.index(), index);
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
            let way = ways(plans).held(100, 0, |_| 10, budget_bytes);
            assert_eq!(way.map(|way| way.offload), expected, "{budget_bytes}");
        }
    }

    #[test]
    fn what_loras_change_counts_where_the_model_is_whole_and_waits_with_it_elsewhere() {
        let way = |budget_bytes| {
            ways(&OFFLOADS)
                .held(100, 40, |_| 10, budget_bytes)
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
        let working = |pieces: Pieces| {
            let decode = match pieces.vae {
                VaePlan::Whole => 80,
                VaePlan::Slicing => 40,
                VaePlan::Tiling => 5,
            };
            decode.max(if pieces.attention { 3 } else { 30 })
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
            let way = ways(plans).held(100, 0, working, budget_bytes).unwrap();
            let told = format!("{:?} {:?} {}", way.offload, way.pieces.vae, way.pieces.attention);
            assert_eq!(told, expected, "{budget_bytes}");
        }
    }

    proptest! {
        #[test]
        fn what_is_held_fits_and_never_takes_more_than_the_whole(
            weights in any::<u64>(), need in any::<u64>(), budget in any::<u64>(), offloads in any::<bool>(),
            tiles in any::<bool>(),
        ) {
            let ways = Ways { offload: offloads, vae_tiling: tiles, ..Ways::default() };
            let working = |pieces: Pieces| if pieces.vae == VaePlan::Tiling { need / 2 } else { need };
            match ways.held(weights, 0, working, budget) {
                Ok(way) => {
                    let taken = on_device_bytes(weights, way.offload);
                    prop_assert!(taken <= weights);
                    prop_assert!(taken.saturating_add(working(way.pieces)) <= budget);
                    prop_assert!(offloads || way.offload == Offload::None);
                    prop_assert!(tiles || way.pieces == Pieces::default());
                }
                Err(least) => prop_assert!(least > budget && least <= weights.saturating_add(need)),
            }
        }
    }
}
