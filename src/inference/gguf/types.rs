//! The names of all tensor types that the file format numbers, for honest refusals.
//!
//! The runtime computes with the types of `quant::TensorType`; this table knows the others well
//! enough to call them by name and to say which of them no file should have any more.

use crate::inference::quant::TensorType;

/// Types that the runtime does not read: `(id, name, whether the format has removed it)`.
const UNREAD: [(u32, &str, bool); 26] = [
    (4, "Q4_2", true),
    (5, "Q4_3", true),
    (9, "Q8_1", false),
    (15, "Q8_K", false),
    (16, "IQ2_XXS", false),
    (17, "IQ2_XS", false),
    (19, "IQ1_S", false),
    (22, "IQ2_S", false),
    (24, "I8", false),
    (25, "I16", false),
    (26, "I32", false),
    (27, "I64", false),
    (28, "F64", false),
    (29, "IQ1_M", false),
    (31, "Q4_0_4_4", true),
    (32, "Q4_0_4_8", true),
    (33, "Q4_0_8_8", true),
    (34, "TQ1_0", false),
    (35, "TQ2_0", false),
    (36, "IQ4_NL_4_4", true),
    (37, "IQ4_NL_4_8", true),
    (38, "IQ4_NL_8_8", true),
    (39, "MXFP4", false),
    (40, "NVFP4", false),
    (41, "Q1_0", false),
    (42, "Q2_0", false),
];

/// How messages call a type that the runtime does not read.
pub(super) fn describe(id: u32) -> String {
    match UNREAD.iter().find(|row| row.0 == id) {
        Some((_, name, false)) => format!("{name} (type {id})"),
        Some((_, name, true)) => format!("{name} (type {id}, removed from the format)"),
        None => format!("{id}, which this version does not know"),
    }
}

/// The names of the types that the runtime reads, in the order of their ids.
pub(super) fn supported() -> String {
    TensorType::ALL.map(TensorType::name).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_of_the_format_has_exactly_one_name() {
        for id in 0..=42 {
            let n_read = TensorType::ALL.iter().filter(|ty| ty.ggml_id() == Some(id)).count();
            let n_unread = UNREAD.iter().filter(|row| row.0 == id).count();
            assert_eq!(n_read + n_unread, 1, "type {id}");
        }
    }

    #[test]
    fn descriptions_name_the_type() {
        assert_eq!(describe(40), "NVFP4 (type 40)");
        assert_eq!(describe(31), "Q4_0_4_4 (type 31, removed from the format)");
        assert_eq!(describe(43), "43, which this version does not know");
        assert!(supported().starts_with("F32, F16, Q4_0"));
    }
}
