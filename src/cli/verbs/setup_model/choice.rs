//! What `setup-model` takes for a number of bits and a board, before any file is read.

use clap::ValueEnum;

use crate::base::format::bytes;
use crate::inference::{Isa, Target};
use crate::library::{Board, CatalogEntry};
use crate::quantize::{Recipe, parse_recipe};

/// Bits of a weight, as people count them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Bits {
    /// Codes of 3 bits.
    #[value(name = "3bit", aliases = ["3", "q3"])]
    Three,
    /// Codes of 4 bits.
    #[value(name = "4bit", aliases = ["4", "q4"])]
    Four,
    /// Codes of 8 bits.
    #[value(name = "8bit", aliases = ["8", "q8"])]
    Eight,
}

impl std::fmt::Display for Bits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}bit", self.count())
    }
}

impl Bits {
    const ALL: [Bits; 3] = [Bits::Eight, Bits::Four, Bits::Three];

    fn count(self) -> u32 {
        match self {
            Bits::Three => 3,
            Bits::Four => 4,
            Bits::Eight => 8,
        }
    }

    /// The end of the file's name: `q4`.
    pub fn suffix(self) -> String {
        format!("q{}", self.count())
    }
}

/// The recipe for so many bits: our own types, which every width fits, with more bits where it
/// tells unless memory is to be saved.
pub fn recipe_for(bits: Bits, saves_memory: bool) -> Recipe {
    let name = match (bits, saves_memory) {
        (Bits::Three, true) => "N3_S",
        (Bits::Three, false) => "N3_M",
        (Bits::Four, true) => "N4",
        (Bits::Four, false) => "N4_M",
        (Bits::Eight, _) => "Q8_0",
    };
    parse_recipe(name).expect("these recipes exist")
}

/// Fewer bits than were asked for, the most first.
pub fn other_bits((bits, saves_memory): (Bits, bool)) -> impl Iterator<Item = (Bits, bool)> {
    let all = Bits::ALL.into_iter().flat_map(|bits| [(bits, false), (bits, true)]);
    let rank = |(bits, saves_memory): (Bits, bool)| 2 * bits.count() - u32::from(saves_memory);
    all.filter(move |other| rank(*other) < rank((bits, saves_memory)))
}

/// The processor that the weights are packed for: that of the board, or for a PC the best of this
/// machine if it is one.
pub fn packed_for(board: &Board) -> Target {
    match (board.n_core, Isa::best()) {
        (Some(_), _) => Target::Neon,
        (None, Isa::Avx512 | Isa::Amx) => Target::Avx512,
        (None, _) => Target::Avx2,
    }
}

/// Bits that a weight takes at least, the type's scales included.
fn bits_min(recipe: Recipe) -> f64 {
    let columns = 256;
    let n_bytes = recipe.base.row_bytes(columns).unwrap_or(0);
    8.0 * n_bytes as f64 / columns as f64
}

/// Why a model of the catalog cannot fit, if its weights alone are too large: said before gigabytes
/// are fetched.
pub fn early_refusal(entry: &CatalogEntry, recipe: Recipe, board: &Board) -> Option<String> {
    let bits = bits_min(recipe);
    let n_weights = f64::from(entry.params_m) * 1e6;
    let needed = (n_weights * bits / 8.0) as u64;
    let available = board.available_bytes();
    (needed > available).then(|| {
        format!(
            "it does not fit {}: {:.0} million weights x {bits:.1} bits / 8 = {} for the weights \
             alone; the board has {} less {} for the system = {}",
            board.title,
            n_weights / 1e6,
            bytes(needed),
            bytes(board.memory_bytes),
            bytes(board.system_bytes),
            bytes(available)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_of_bits_has_a_recipe_and_a_smaller_one() {
        for bits in Bits::ALL {
            let (usual, low) = (recipe_for(bits, false), recipe_for(bits, true));
            assert!(bits_min(low) <= bits_min(usual), "{bits}");
            assert!(
                (f64::from(bits.count())..f64::from(bits.count()) + 1.0).contains(&bits_min(low))
            );
        }
        let below: Vec<_> = other_bits((Bits::Four, false)).collect();
        assert_eq!(below, [(Bits::Four, true), (Bits::Three, false), (Bits::Three, true)]);
        assert_eq!(other_bits((Bits::Three, true)).count(), 0);
    }

    #[test]
    fn weights_that_are_too_large_are_refused_with_the_sum() {
        let entry = CatalogEntry { params_m: 6740, ..CatalogEntry::default() };
        let nano = Board::find("nano2gb").unwrap();
        let text = early_refusal(&entry, recipe_for(Bits::Four, false), &nano).unwrap();
        assert!(text.contains("6740 million weights x 4.5 bits / 8 = 3.53 GiB"), "{text}");
        assert!(text.contains("1.93 GiB less 768 MiB for the system = 1.18 GiB"), "{text}");
        let pc = Board::find("pc16gb").unwrap();
        assert!(early_refusal(&entry, recipe_for(Bits::Four, false), &pc).is_none());
    }
}
