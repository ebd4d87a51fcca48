//! What the weights of a model were multiplied by: sums of squares, column by column.
//!
//! A quantizer that knows them rounds well where it matters. They are gathered while a text runs
//! through the model, and cost nothing when nobody asks.

use std::collections::BTreeMap;

/// The sums of one weight.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InputSum {
    /// Sums of squares, `[n_cols]`.
    pub squares: Vec<f64>,
    /// Rows of activations that were summed.
    pub n_rows: u64,
}

/// Sums by the name of the weight's tensor.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InputSums {
    sums: BTreeMap<String, InputSum>,
}

impl InputSums {
    /// Every sum, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &InputSum)> {
        self.sums.iter().map(|(name, sum)| (name.as_str(), sum))
    }

    /// Adds rows of activations that `tensor` was multiplied by.
    pub(super) fn add<'a>(&mut self, tensor: &str, rows: impl Iterator<Item = &'a [f32]>) {
        if !self.sums.contains_key(tensor) {
            self.sums.insert(tensor.to_owned(), InputSum::default());
        }
        let Some(sum) = self.sums.get_mut(tensor) else { return };
        for row in rows {
            sum.squares.resize(row.len(), 0.0);
            let each = sum.squares.iter_mut().zip(row);
            each.for_each(|(sum, x)| *sum += f64::from(*x) * f64::from(*x));
            sum.n_rows += 1;
        }
    }
}
