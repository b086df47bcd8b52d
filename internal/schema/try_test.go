package schema
import ("testing";"math/rand/v2")
func TestTry(t *testing.T){ for _,n:=range []string{"unevaluated","pattern properties","number bounds","expression","date-time","email","pattern anywhere","ipv6","uri", "allOf of anyOf","least properties"} { g,err:=Grammar([]byte(supported[n])); if err!=nil{t.Fatal(err)}; x:=readGBNF(t,g); r:=rand.New(rand.NewPCG(1,3)); t.Log(n, len(g)); for range 4 {t.Logf("   %q",x.document(r))}; if len(g)<1500 {t.Log("\n"+g)} } }
