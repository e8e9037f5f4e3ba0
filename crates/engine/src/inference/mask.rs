//! What becomes of an inpainting's image and mask on their way to the worker, and of the picture on its way back. Pure.

use calotype_imaging::{Area, Gray, Rgb, crop_gray, crop_rgb, paste, repaint_area, resize_gray, resize_rgb};

use super::Plan;
use super::request::MaskArea;

/// Image and mask as the worker gets them, of the plan's size.
pub(super) struct Treated {
    pub(super) image: Rgb,
    pub(super) mask: Gray,
}

/// Treats the mask, and takes out the part of the image that is sampled.
pub(super) fn treat(plan: &Plan, image: &Rgb, mask: &Gray) -> Treated {
    let mask = treated(plan, image, mask);
    let (image, mask) = match area(plan, &mask) {
        Some(area) => (crop_rgb(image, area), crop_gray(&mask, area)),
        None => (image.clone(), mask),
    };
    Treated {
        image: resize_rgb(&image, plan.width, plan.height),
        mask: resize_gray(&mask, plan.width, plan.height),
    }
}

/// The whole image with the sampled part in it; `None` where the picture is the whole already.
pub(crate) fn paste_back(plan: &Plan, image: &Rgb, mask: &Gray, picture: &Rgb) -> Option<Rgb> {
    let mask = treated(plan, image, mask);
    let area = area(plan, &mask)?;
    let part = resize_rgb(picture, area.width, area.height);
    Some(paste(image, &part, area, &mask))
}

/// The mask at the image's own size, inverted, grown and softened as asked.
fn treated(plan: &Plan, image: &Rgb, mask: &Gray) -> Gray {
    let treatment = plan.mask_treatment;
    let mut mask = resize_gray(mask, image.width, image.height);
    if treatment.invert {
        mask = mask.invert();
    }
    if treatment.dilate_pixels != 0 {
        mask = mask.dilate(treatment.dilate_pixels);
    }
    if treatment.blur_pixels > 0.0 {
        mask = mask.blur(treatment.blur_pixels);
    }
    mask
}

/// The part that is sampled; `None` for the whole image, also where the mask is empty.
fn area(plan: &Plan, mask: &Gray) -> Option<Area> {
    let treatment = plan.mask_treatment;
    match treatment.area {
        MaskArea::Whole => None,
        MaskArea::Masked => repaint_area(mask, treatment.padding_pixels, plan.width, plan.height),
    }
}
