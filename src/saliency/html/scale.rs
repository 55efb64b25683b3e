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
}

/// Colours of the scales that have one end at 0, and of those with a middle.
const SEQUENTIAL: usize = 10;
const DIVERGING: usize = 11;

impl Scale {
    /// For the numbers that a table shows.
    pub fn of(kind: Kind, values: impl Iterator<Item = f64>) -> Self {
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
        Self { kind, low, high }
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
        (self.kind.text(self.low) + unit, self.kind.text(self.high) + unit)
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
        let scale = Scale::of(Kind::Signed, [0.2, -0.4].into_iter());
        assert_eq!([-0.4, 0.0, 0.4].map(|v| scale.class(v)), ["d0", "d5", "d10"]);
        assert_eq!(scale.ends(), ("−0.400".into(), "0.400".into()));
        let scale = Scale::of(Kind::Agreement, [0.5, 0.7].into_iter());
        assert_eq!([0.3, 0.5, 0.7].map(|v| scale.class(v)), ["d0", "d5", "d10"]);
        let scale = Scale::of(Kind::Share, [0.1, 0.2].into_iter());
        assert_eq!([0.0, 0.1, 0.2].map(|v| scale.class(v)), ["q0", "q5", "q9"]);
        assert_eq!(scale.ends(), ("0.0 %".into(), "20.0 %".into()));
    }

    #[test]
    fn equal_or_no_numbers_have_a_scale_too() {
        for kind in [Kind::Share, Kind::Part, Kind::Size, Kind::Signed, Kind::Agreement] {
            for scale in [Scale::of(kind, [].into_iter()), Scale::of(kind, [0.0, 0.0].into_iter())] {
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
