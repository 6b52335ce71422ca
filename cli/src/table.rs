//! Columns of text, aligned as crictl aligns them: at least 20 wide, three spaces apart, the last one free.

/// Narrowest column, in characters.
const COLUMN_MIN: usize = 20;
/// Spaces after the longest cell of a column.
const GAP: usize = 3;

pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<const N: usize>(header: [&str; N]) -> Self {
        Self { rows: vec![header.map(String::from).to_vec()] }
    }

    /// A row with a cell for each column of the header.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.to_vec());
    }

    /// As `row`, for headers that depend on flags.
    pub(crate) fn from_rows(rows: Vec<Vec<String>>) -> Self {
        Self { rows }
    }

    pub(crate) fn render(&self) -> String {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |column: usize| {
            let longest = self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
            COLUMN_MIN.max(longest + GAP)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            for (column, cell) in row.iter().enumerate() {
                match column + 1 == columns {
                    true => text += cell,
                    false => text += &format!("{cell:<width$}", width = widths[column]),
                }
            }
            text += "\n";
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(["A", "LONG", "LAST"]);
        table.row(["x".into(), "a cell of twenty-five char".into(), "end".into()]);
        let text = table.render();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "A                   LONG                         LAST");
        assert_eq!(lines[1], "x                   a cell of twenty-five char   end");
    }
}
