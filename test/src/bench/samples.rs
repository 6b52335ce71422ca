//! What was measured: samples by figure and target, and their percentiles.

use std::collections::BTreeMap;
use std::time::Duration;

/// Samples of one run. A figure is named when it is first added to, and keeps that place in the order.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    figures: Vec<String>,
    values: BTreeMap<(String, String), Vec<f64>>,
}

impl Samples {
    /// Adds one sample of a target's figure, in the unit that the figure's name tells.
    pub fn add(&mut self, figure: &str, target: &str, value: f64) {
        if !self.figures.iter().any(|f| f == figure) {
            self.figures.push(figure.to_owned());
        }
        self.values.entry((figure.to_owned(), target.to_owned())).or_default().push(value);
    }

    /// Adds a time, in milliseconds.
    pub fn add_time(&mut self, figure: &str, target: &str, time: Duration) {
        self.add(figure, target, time.as_secs_f64() * 1e3);
    }

    /// Figures in the order in which they were first added to.
    pub fn figures(&self) -> impl Iterator<Item = &str> {
        self.figures.iter().map(String::as_str)
    }

    /// How many samples there are of a target's figure.
    pub fn count(&self, figure: &str, target: &str) -> usize {
        self.get(figure, target).map_or(0, <[f64]>::len)
    }

    /// The sample below which `percent` of them are (nearest rank); none without samples.
    pub fn percentile(&self, figure: &str, target: &str, percent: f64) -> Option<f64> {
        let mut sorted = self.get(figure, target)?.to_vec();
        sorted.sort_by(f64::total_cmp);
        let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.clamp(1, sorted.len()) - 1).copied()
    }

    fn get(&self, figure: &str, target: &str) -> Option<&[f64]> {
        self.values.get(&(figure.to_owned(), target.to_owned())).map(Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples_by_nearest_rank() {
        let mut samples = Samples::default();
        for value in [5.0, 1.0, 4.0, 2.0, 3.0] {
            samples.add("f", "t", value);
        }
        assert_eq!(samples.percentile("f", "t", 50.0), Some(3.0));
        assert_eq!(samples.percentile("f", "t", 95.0), Some(5.0));
        assert_eq!(samples.percentile("f", "t", 0.0), Some(1.0));
        assert_eq!(samples.percentile("f", "other", 50.0), None);
        assert_eq!(samples.count("f", "t"), 5);
    }
}
