// SPDX-License-Identifier: Apache-2.0
// Reads the Groovy file named on the command line with Groovy's own parser, and writes what is called in it as JSON:
// [{"call": "stage", "line": 20, "args": ["nights"], "body": [...]}, ...]. A file that does not parse ends with status 1.
import groovy.json.JsonOutput
import org.codehaus.groovy.ast.builder.AstBuilder
import org.codehaus.groovy.ast.expr.*
import org.codehaus.groovy.ast.stmt.*
import org.codehaus.groovy.control.CompilePhase
import org.codehaus.groovy.control.MultipleCompilationErrorsException

def told
told = { expression ->
  switch (expression) {
    case ConstantExpression: return expression.value
    case GStringExpression: return expression.text
    case MapExpression: return expression.mapEntryExpressions.collectEntries { [(told(it.keyExpression) as String): told(it.valueExpression)] }
    case ListExpression: return expression.expressions.collect(told)
    case MethodCallExpression: return [call: expression.methodAsString, args: expression.arguments.expressions.collect(told)]
    default: return expression.text
  }
}
def calls
calls = { statement ->
  if (statement instanceof BlockStatement) return statement.statements.collectMany { calls(it) }
  def expression = statement instanceof ExpressionStatement || statement instanceof ReturnStatement ? statement.expression : null
  if (!(expression instanceof MethodCallExpression)) return [[text: statement.text, line: statement.lineNumber]]
  def given = expression.arguments instanceof TupleExpression ? expression.arguments.expressions : [expression.arguments]
  def bodies = given.findAll { it instanceof ClosureExpression }
  def one = [call: expression.methodAsString, line: expression.lineNumber]
  one.args = given.findAll { !(it instanceof ClosureExpression) }.collect(told)
  if (bodies) one.body = bodies.collectMany { calls(it.code) }
  return [one]
}
try {
  def parsed = new AstBuilder().buildFromString(CompilePhase.CONVERSION, false, new File(args[0]).getText('UTF-8'))
  println JsonOutput.toJson(parsed.findAll { it instanceof BlockStatement }.collectMany { calls(it) })
} catch (MultipleCompilationErrorsException malformed) {
  System.err.println(malformed.message)
  System.exit(1)
}
