//! How numbers become colours and short texts.

/// What kind of number a table shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A share of something, shown in percent, coloured from 0 to the largest shown.
    Share,
    /// A share that may be anything from none to all, coloured from 0 to 100 %.
    Part,
    /// A number from 0 on, coloured from 0 to the largest shown.
    Size,
    /// A cosine, coloured on both sides of 0.
    Signed,
    /// A share of equal signs, coloured on both sides of one half, which is what chance gives.
    Agreement,
}

/// The colours of one table.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scale {
    kind: Kind,
    low: f64,
    high: f64,
    /// Whether there are numbers below and above the ends.
    beyond: (bool, bool),
}

/// Rows with a smaller share of the elements do not stretch a scale: the cosines of a few numbers are large by chance.
const LEAST_WEIGHT: f64 = 0.001;

/// Colours of the scales that have one end at 0, and of those with a middle.
const SEQUENTIAL: usize = 10;
const DIVERGING: usize = 11;

impl Scale {
    /// For the numbers that a table shows, each with its row's share of all elements.
    pub fn of(kind: Kind, weighted: &[(f64, f64)]) -> Self {
        let is_heavy = |weight: f64| weight >= LEAST_WEIGHT;
        let any_heavy = weighted.iter().any(|(_, weight)| is_heavy(*weight));
        let values = weighted.iter().filter(|(_, weight)| is_heavy(*weight) || !any_heavy).map(|(value, _)| *value);
        let furthest = |from: f64| move |most: f64, v: f64| most.max((v - from).abs());
        // Where all are the same, any range will do, but not one without width.
        let width = |most: f64, least: f64| if most > 0.0 { most } else { least };
        let (low, high) = match kind {
            Kind::Part => (0.0, 1.0),
            Kind::Share | Kind::Size => (0.0, width(values.fold(0.0, furthest(0.0)), 1.0)),
            Kind::Signed => {
                let most = width(values.fold(0.0, furthest(0.0)), 1.0);
                (-most, most)
            }
            Kind::Agreement => {
                let most = width(values.fold(0.0, furthest(0.5)), 0.5);
                (0.5 - most, 0.5 + most)
            }
        };
        let beyond = (weighted.iter().any(|(v, _)| *v < low), weighted.iter().any(|(v, _)| *v > high));
        Self { kind, low, high, beyond }
    }

    fn colours(self) -> (char, usize) {
        match self.kind {
            Kind::Signed | Kind::Agreement => ('d', DIVERGING),
            Kind::Share | Kind::Part | Kind::Size => ('q', SEQUENTIAL),
        }
    }

    /// The style class of a number.
    pub fn class(self, value: f64) -> String {
        let (letter, colours) = self.colours();
        let place = (value - self.low) / (self.high - self.low);
        format!("{letter}{}", ((place * colours as f64) as usize).min(colours - 1))
    }

    /// The classes of a legend, from the least number to the largest.
    pub fn legend(self) -> Vec<String> {
        let (letter, colours) = self.colours();
        (0..colours).map(|i| format!("{letter}{i}")).collect()
    }

    /// The ends of the colours, as text.
    pub fn ends(self) -> (String, String) {
        let unit = if self.kind.is_percent() { " %" } else { "" };
        let low = if self.beyond.0 { "≤ " } else { "" };
        let high = if self.beyond.1 { "≥ " } else { "" };
        (format!("{low}{}{unit}", self.kind.text(self.low)), format!("{high}{}{unit}", self.kind.text(self.high)))
    }
}

impl Kind {
    /// Whether numbers are shown in percent.
    pub fn is_percent(self) -> bool {
        matches!(self, Kind::Share | Kind::Part | Kind::Agreement)
    }

    /// A number for a cell.
    pub fn text(self, value: f64) -> String {
        let text = match self {
            Kind::Share | Kind::Part | Kind::Agreement => format!("{:.1}", 100.0 * value),
            Kind::Signed => format!("{value:.3}"),
            Kind::Size => significant(value),
        };
        // Typeset as what it is. What rounds to zero has no sign.
        match text.strip_prefix('-') {
            Some(zero) if zero.chars().all(|c| matches!(c, '0' | '.')) => zero.into(),
            Some(digits) => format!("−{digits}"),
            None => text,
        }
    }
}

/// Three significant digits.
fn significant(value: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let exponent = value.abs().log10().floor();
    if (-4.0..6.0).contains(&exponent) {
        let decimals = (2.0 - exponent).max(0.0) as usize;
        return format!("{value:.decimals$}");
    }
    format!("{value:.2e}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_and_the_middle_of_a_scale_have_their_own_colours() {
        let scale = Scale::of(Kind::Signed, &[(0.2, 1.0), (-0.4, 1.0)]);
        assert_eq!([-0.4, 0.0, 0.4].map(|v| scale.class(v)), ["d0", "d5", "d10"]);
        assert_eq!(scale.ends(), ("−0.400".into(), "0.400".into()));
        let scale = Scale::of(Kind::Agreement, &[(0.5, 1.0), (0.7, 1.0)]);
        assert_eq!([0.3, 0.5, 0.7].map(|v| scale.class(v)), ["d0", "d5", "d10"]);
        let scale = Scale::of(Kind::Share, &[(0.1, 1.0), (0.2, 1.0)]);
        assert_eq!([0.0, 0.1, 0.2].map(|v| scale.class(v)), ["q0", "q5", "q9"]);
        assert_eq!(scale.ends(), ("0.0 %".into(), "20.0 %".into()));
    }

    #[test]
    fn rows_of_few_elements_are_coloured_by_the_others_scale() {
        let scale = Scale::of(Kind::Signed, &[(0.1, 0.6), (-0.2, 0.3), (-1.0, 1e-6)]);
        assert_eq!([-1.0, -0.2, 0.0].map(|v| scale.class(v)), ["d0", "d0", "d5"]);
        assert_eq!(scale.ends(), ("≤ −0.200".into(), "0.200".into()));
        let only = Scale::of(Kind::Signed, &[(1.0, 1e-6)]);
        assert_eq!(only.ends(), ("−1.000".into(), "1.000".into()));
    }

    #[test]
    fn equal_or_no_numbers_have_a_scale_too() {
        for kind in [Kind::Share, Kind::Part, Kind::Size, Kind::Signed, Kind::Agreement] {
            for scale in [Scale::of(kind, &[]), Scale::of(kind, &[(0.0, 1.0), (0.0, 0.0)])] {
                assert!(scale.legend().contains(&scale.class(0.0)));
            }
        }
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            ["0", "0.00123", "12.3", "123456", "1.50e7", "−0.250"],
            [
                Kind::Size.text(0.0),
                Kind::Size.text(0.001234),
                Kind::Size.text(12.345),
                Kind::Size.text(123_456.0),
                Kind::Size.text(1.5e7),
                Kind::Signed.text(-0.25),
            ]
        );
        assert_eq!(Kind::Signed.text(-0.0001), "0.000");
        assert_eq!(Kind::Share.text(0.1234), "12.3");
    }
}
